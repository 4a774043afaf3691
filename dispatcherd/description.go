package dispatcherd

import (
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/payload"
)

// Bounds of what a worker may say of its node: every scheduler and apid keeps it
// in memory, and looks at it for each service.
const (
	maxDescription  = 256 << 10
	maxExecutors    = 32
	maxKinds        = 16
	maxCapabilities = 256
	// maxText bounds names, versions and the like, in bytes.
	maxText = 256
	// maxMessage is where the message of an executor is cut off.
	maxMessage = 1 << 10
)

// kindPattern is what the API server allows as the kind of a runtime.
var kindPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,63}$`)

// checkDescription refuses a description beyond the bounds, and names the field.
func checkDescription(d *musterv1.NodeDescription) error {
	if d == nil {
		return status.Error(codes.InvalidArgument, "description is missing")
	}
	err := boundDescription(d)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func boundDescription(d *musterv1.NodeDescription) error {
	if n := proto.Size(d); n > maxDescription {
		return fmt.Errorf("description has %d bytes, at most %d are allowed", n, maxDescription)
	}
	if n := len(d.Executors); n > maxExecutors {
		return fmt.Errorf("description.executors has %d entries, at most %d are allowed: a node needs one for each kind of runtime", n, maxExecutors)
	}
	for _, text := range []struct{ name, value string }{
		{"hostname", d.Hostname}, {"machine.id", d.GetMachine().GetId()},
		{"platform.os", d.GetPlatform().GetOs()}, {"platform.architecture", d.GetPlatform().GetArchitecture()},
	} {
		if len(text.value) > maxText {
			return fmt.Errorf("description.%s has %d bytes, at most %d are allowed", text.name, len(text.value), maxText)
		}
	}
	for i, e := range d.Executors {
		at := fmt.Sprintf("description.executors[%d]", i)
		for _, list := range []struct {
			name    string
			entries []string
			most    int
		}{{"kinds", e.Kinds, maxKinds}, {"capabilities", e.Capabilities, maxCapabilities}} {
			if n := len(list.entries); n > list.most {
				return fmt.Errorf("%s.%s has %d entries, at most %d are allowed", at, list.name, n, list.most)
			}
			for j, text := range list.entries {
				if len(text) > maxText {
					return fmt.Errorf("%s.%s[%d] has %d bytes, at most %d are allowed", at, list.name, j, len(text), maxText)
				}
			}
		}
		for j, kind := range e.Kinds {
			if !kindPattern.MatchString(kind) {
				return fmt.Errorf(`%s.kinds[%d] is %q: want at most 63 letters, digits, "-", "_" and "."`, at, j, clip(kind, maxID))
			}
		}
		for _, text := range []struct{ name, value string }{{"name", e.Name}, {"version", e.Version}, {"checksum", e.Checksum}} {
			if len(text.value) > maxText {
				return fmt.Errorf("%s.%s has %d bytes, at most %d are allowed", at, text.name, len(text.value), maxText)
			}
		}
	}
	return nil
}

// judgeSchemas notes on each executor why its payload schema cannot be used, and
// cuts long messages off. What the worker itself says of its schemas does not
// count. A schema at fault concerns its node alone: the scheduler places no task
// there that needs it.
func judgeSchemas(d *musterv1.NodeDescription, schemas *payload.Schemas) {
	for _, e := range d.GetExecutors() {
		e.PayloadSchemaError = ""
		if e.PayloadSchema != "" {
			if err := schemas.Get(e.PayloadSchema).Err(); err != nil {
				e.PayloadSchemaError = strings.ToValidUTF8(clip(err.Error(), maxMessage), "")
			}
		}
		if len(e.PayloadSchema) > payload.MaxSchemaSize {
			e.PayloadSchema = ""
		}
		e.Message = strings.ToValidUTF8(clip(e.Message, maxMessage), "")
	}
}
