package validate

import (
	"fmt"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/payload"
)

// maxTried bounds how many schemas one payload is checked against. There is
// one for each version of an executor that nodes run.
const maxTried = 8

// checkPayload checks the payload of a generic runtime. It passes if one node
// accepts it: the scheduler avoids the others. What is reported otherwise is what
// the schema of most nodes says. Where nodes publish more schemas than are tried,
// the payload passes, so that no number of nodes can have it refused for the
// others.
func (v *Validator) checkPayload(r *Report, field string, g *musterv1.GenericRuntime, offers *offered) {
	at := field + ".payload"
	p, err := payload.New(g)
	if err != nil {
		r.Invalid(at, "%v", err)
		return
	}
	var first []payload.Violation
	unusable := ""
	tried := 0
	for _, o := range offers.variants {
		fault := o.PayloadSchemaError
		if fault == "" && o.PayloadSchema == "" {
			return // it takes anything
		}
		var schema *payload.Schema
		if fault == "" {
			if tried++; tried > maxTried {
				return
			}
			if schema = v.schemas.Get(o.PayloadSchema); schema.Err() != nil {
				fault = schema.Err().Error()
			}
		}
		if fault != "" {
			if unusable == "" {
				unusable = fmt.Sprintf("the payload schema that executor %s %s publishes cannot be used: %s", short(o.Name), short(o.Version), clip(fault))
			}
			continue
		}
		violations := schema.Check(p)
		if len(violations) == 0 {
			return
		}
		if first == nil {
			first = violations
		}
	}
	for _, v := range first {
		r.Invalid(at+v.Path, "%s", v.Description)
	}
	if first == nil && unusable != "" {
		r.Waiting(field+".kind", "%s", unusable)
	}
}

func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
