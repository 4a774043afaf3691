package payload

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// maxViolations bounds what one check reports.
const maxViolations = 100

// Violation is one value of a payload that is in the way. Path begins at the
// payload: ".command[1]", or "" for the payload itself.
type Violation struct {
	Path        string
	Description string
}

// Payload is a payload with its number of values.
type Payload struct {
	values map[string]any
	size   int
}

// New returns a payload of a runtime, which may be nil. Its error says that the
// payload is nested too deep.
func New(g *musterv1.GenericRuntime) (Payload, error) {
	values := map[string]any{}
	if g.GetPayload() != nil {
		values = g.Payload.AsMap()
	}
	size, err := countValues(values, 0)
	return Payload{values, size}, err
}

// Check returns what the schema refuses of a payload, nothing if it accepts it.
// It must not be called on a schema that cannot be used.
func (s *Schema) Check(p Payload) []Violation {
	c := &checker{}
	c.check(s, p)
	// The library goes through maps, so its order is not stable.
	slices.SortFunc(c.violations, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Description, b.Description))
	})
	return slices.Compact(c.violations)
}

// checker gathers the violations of one check.
type checker struct{ violations []Violation }

func (c *checker) add(path, format string, args ...any) {
	c.violations = append(c.violations, Violation{path, fmt.Sprintf(format, args...)})
}

func (c *checker) check(s *Schema, p Payload) {
	if s.cost*p.size > maxChecks {
		c.add("", "has too many values (%d) for its executor's schema", p.size)
		return
	}
	defer func() {
		if p := recover(); p != nil {
			c.add("", "cannot be checked against its executor's schema: %v", p)
		}
	}()
	err := s.schema.Validate(p.values)
	if err == nil {
		return
	}
	var failed *jsonschema.ValidationError
	if !errors.As(err, &failed) {
		c.add("", "%v", err)
		return
	}
	c.explain(failed, message.NewPrinter(language.English))
}

// explain turns the library's tree of causes into violations of fields.
func (c *checker) explain(e *jsonschema.ValidationError, p *message.Printer) {
	if len(c.violations) >= maxViolations {
		return
	}
	path := location(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			c.add(path+property(name), "is required")
		}
		return
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			c.add(path+property(name), "is not a field of this payload")
		}
		return
	case *kind.AnyOf, *kind.OneOf:
		if names := lacking(e); len(names) > 0 {
			c.add(path, "needs one of %s", strings.Join(names, ", "))
			return
		}
		// What each alternative lacks would confuse: one of them is meant.
		c.add(path, "matches none, or more than one, of the forms that the executor takes")
		return
	}
	if len(e.Causes) > 0 {
		for _, cause := range e.Causes {
			c.explain(cause, p)
		}
		return
	}
	c.add(path, "%s", clip(e.ErrorKind.LocalizedString(p)))
}

// lacking names the properties of which a payload must have one, if that is all
// that its alternatives are about.
func lacking(e *jsonschema.ValidationError) []string {
	var names []string
	for _, a := range e.Causes {
		for len(a.Causes) == 1 {
			a = a.Causes[0]
		}
		required, ok := a.ErrorKind.(*kind.Required)
		if !ok || len(required.Missing) != 1 || len(a.InstanceLocation) != len(e.InstanceLocation) {
			return nil
		}
		names = append(names, clip(required.Missing[0]))
	}
	return names
}

func location(tokens []string) string {
	path := ""
	for _, t := range tokens {
		path += property(t)
	}
	return path
}

// property writes one step of a payload's path: ".name", "[2]" or
// ["odd name"].
func property(name string) string {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return "[" + strconv.FormatUint(n, 10) + "]"
	}
	for _, c := range name {
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return "[" + strconv.Quote(clip(name)) + "]"
		}
	}
	return "." + clip(name)
}

// clip keeps what a schema or a payload says from filling an error.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
