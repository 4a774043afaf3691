package cli

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// parseDependency reads NAME, NAME:CONDITION or
// service=NAME,condition=CONDITION,restart,optional.
func parseDependency(v string) (*musterv1.ServiceDependency, error) {
	const form = "want db, db:healthy, or service=db,condition=started|healthy|completed,restart,optional"
	d := &musterv1.ServiceDependency{}
	name, condition, _ := strings.Cut(v, ":")
	d.Service = name
	if strings.Contains(v, "=") {
		d.Service, condition = "", ""
		for part := range strings.SplitSeq(v, ",") {
			key, value, given := strings.Cut(part, "=")
			yes, err := true, error(nil)
			if given && (key == "restart" || key == "optional") {
				yes, err = strconv.ParseBool(value)
			}
			switch {
			case err != nil:
				return nil, usage("--depends-on: %q: %s is %q; want true or false", v, key, value)
			case key == "service":
				d.Service = value
			case key == "condition":
				condition = value
			case key == "restart":
				d.Restart = yes
			case key == "optional":
				d.Required = proto.Bool(!yes)
			default:
				return nil, usage("--depends-on: %q: there is no %q; %s", v, key, form)
			}
		}
	}
	if d.Service == "" {
		return nil, usage("--depends-on: %q has no service; %s", v, form)
	}
	if condition != "" {
		of := d.ProtoReflect().Descriptor().Fields().ByName("condition").Enum()
		n := enumValue(of, condition)
		if n == nil {
			return nil, usage("--depends-on: %q: %w", v, wantOneOf(condition, enumNames(of)))
		}
		d.Condition = musterv1.ServiceDependency_Condition(n.Number())
	}
	return d, nil
}
