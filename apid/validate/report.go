package validate

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxViolations bounds the details of one error.
	maxViolations = 100
	// maxNamed is how many of them the error's message repeats.
	maxNamed = 10
)

// Violation is one field that is in the way, by its JSON path.
type Violation struct {
	Field       string
	Description string
}

// Report gathers what is wrong with one request.
type Report struct {
	invalid       []Violation
	unimplemented []Violation
	// waiting are faults of the cluster and not of the request: it may succeed
	// later, unchanged.
	waiting []Violation
}

// Invalid says that no version would take a field.
func (r *Report) Invalid(field, format string, args ...any) {
	r.invalid = append(r.invalid, Violation{Field: field, Description: fmt.Sprintf(format, args...)})
}

// Unimplemented says that this version does not act on a field.
func (r *Report) Unimplemented(field, description string) {
	r.unimplemented = append(r.unimplemented, Violation{Field: field, Description: description})
}

// Waiting says that the cluster is not ready for what a field asks.
func (r *Report) Waiting(field, format string, args ...any) {
	r.waiting = append(r.waiting, Violation{Field: field, Description: fmt.Sprintf(format, args...)})
}

// include adds what is wrong with a spec inside of another, at a path.
func (r *Report) include(at string, of *Report) {
	moved := func(list []Violation) []Violation {
		all := make([]Violation, len(list))
		for i, v := range list {
			all[i] = Violation{at + strings.TrimPrefix(v.Field, "spec"), v.Description}
		}
		return all
	}
	r.invalid = append(r.invalid, moved(of.invalid)...)
	r.unimplemented = append(r.unimplemented, moved(of.unimplemented)...)
	r.waiting = append(r.waiting, moved(of.waiting)...)
}

// Err returns nil if nothing is wrong, and else the gRPC status that says it
// all. Its code is that of the worst kind of fault.
func (r *Report) Err() error {
	all := append(append(append([]Violation{}, r.invalid...), r.unimplemented...), r.waiting...)
	switch {
	case len(r.invalid) > 0:
		return failure(codes.InvalidArgument, "invalid", all)
	case len(r.unimplemented) > 0:
		return failure(codes.Unimplemented, "not implemented yet", all)
	case len(r.waiting) > 0:
		return failure(codes.FailedPrecondition, "not possible now", all)
	default:
		return nil
	}
}

// Field returns the error of a request with one invalid field.
func Field(field, format string, args ...any) error {
	var r Report
	r.Invalid(field, format, args...)
	return r.Err()
}

func failure(code codes.Code, what string, all []Violation) error {
	details := &errdetails.BadRequest{}
	var b strings.Builder
	b.WriteString(what)
	for i, v := range all {
		if i == maxViolations {
			break
		}
		details.FieldViolations = append(details.FieldViolations,
			&errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		switch {
		case i == 0:
			fmt.Fprintf(&b, ": %s: %s", v.Field, v.Description)
		case i < maxNamed:
			fmt.Fprintf(&b, "; %s: %s", v.Field, v.Description)
		case i == maxNamed:
			fmt.Fprintf(&b, "; and %d more", len(all)-maxNamed)
		}
	}
	s, err := status.New(code, b.String()).WithDetails(details)
	if err != nil {
		// Only a code of OK or a message that cannot be encoded comes here.
		return status.Error(code, b.String())
	}
	return s.Err()
}
