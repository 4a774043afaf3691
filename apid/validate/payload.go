package validate

import (
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

// maxTried bounds how many schemas one payload is checked against. There is
// one for each version of an executor that nodes run.
const maxTried = 8

// checkPayload checks the payload of a generic runtime. While nodes run
// different versions of an executor one of their schemas must take it; what is
// reported otherwise is what the first of them says.
func (s *schemas) checkPayload(r *Report, field string, g *musterv1.GenericRuntime, executors []*musterv1.ExecutorDescription) {
	payload := map[string]any{}
	if g.Payload != nil {
		payload = g.Payload.AsMap()
	}
	at := field + ".payload"
	size, err := countValues(payload, 0)
	if err != nil {
		r.Invalid(at, "%v", err)
		return
	}
	var first, unusable *Report
	for i, e := range executors {
		if e.PayloadSchema == "" {
			return // it takes anything
		}
		if i == maxTried {
			break
		}
		c := s.get(e.PayloadSchema)
		if c.err != nil {
			if unusable == nil {
				unusable = &Report{}
				unusable.Waiting(field+".kind", "the payload schema that executor %s %s publishes cannot be used: %v", short(e.Name), short(e.Version), clip(c.err.Error()))
			}
			continue
		}
		report := c.check(at, payload, size)
		if len(report.invalid) == 0 {
			return
		}
		if first == nil {
			first = report
		}
	}
	switch {
	case first != nil:
		r.invalid = append(r.invalid, first.invalid...)
	case unusable != nil:
		r.waiting = append(r.waiting, unusable.waiting...)
	}
}

func (c *compiled) check(at string, payload map[string]any, size int) (r *Report) {
	r = &Report{}
	if c.cost*size > maxChecks {
		r.Invalid(at, "has too many values (%d) for its executor's schema", size)
		return r
	}
	defer func() {
		if p := recover(); p != nil {
			r.Invalid(at, "cannot be checked against its executor's schema: %v", p)
		}
	}()
	err := c.schema.Validate(payload)
	if err == nil {
		return r
	}
	var failed *jsonschema.ValidationError
	if !errors.As(err, &failed) {
		r.Invalid(at, "%v", err)
		return r
	}
	explain(r, at, failed, message.NewPrinter(language.English))
	// The library goes through maps, so its order is not stable.
	slices.SortFunc(r.invalid, func(a, b Violation) int {
		switch {
		case a.Field != b.Field && a.Field < b.Field, a.Field == b.Field && a.Description < b.Description:
			return -1
		case a == b:
			return 0
		default:
			return 1
		}
	})
	r.invalid = slices.Compact(r.invalid)
	return r
}

// explain turns the library's tree of causes into violations of fields.
func explain(r *Report, at string, e *jsonschema.ValidationError, p *message.Printer) {
	if len(r.invalid) >= maxViolations {
		return
	}
	field := at + location(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			r.Invalid(field+property(name), "is required")
		}
		return
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			r.Invalid(field+property(name), "is not a field of this payload")
		}
		return
	case *kind.AnyOf, *kind.OneOf:
		if names := lacking(e); len(names) > 0 {
			r.Invalid(field, "needs one of %s", strings.Join(names, ", "))
			return
		}
		// What each alternative lacks would confuse: one of them is meant.
		r.Invalid(field, "matches none, or more than one, of the forms that the executor takes")
		return
	}
	if len(e.Causes) > 0 {
		for _, cause := range e.Causes {
			explain(r, at, cause, p)
		}
		return
	}
	r.Invalid(field, "%s", clip(e.ErrorKind.LocalizedString(p)))
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
		names = append(names, short(required.Missing[0]))
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
			return "[" + strconv.Quote(short(name)) + "]"
		}
	}
	return "." + short(name)
}

func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%.*s...", most, s)
}
