package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/stack"
)

// Exit codes, for scripts.
const (
	ExitFailure      = 1
	ExitUsage        = 2 // wrong flags, or a spec that was refused
	ExitNotFound     = 3
	ExitConflict     = 4 // a name that is taken, or a version that is stale
	ExitUnavailable  = 5 // the cluster does not answer
	ExitNotConverged = 6 // done, but the tasks do not run
	ExitUnhealthy    = 7 // a part of the cluster is not well (cluster status, network test)
	ExitChanges      = 8 // a deployment would change something (stack plan --exit-code)
	ExitInterrupted  = 130
)

// ExitCodes is the help that tells of them.
const ExitCodes = `Exit codes: 0 success; 1 failure; 2 wrong usage or invalid input; 3 not found; 4 conflict (name taken, stale
version); 5 the cluster does not answer; 6 stored, but the tasks do not run; 7 the cluster is unhealthy (cluster
status) or a service is not reached (network test); 8 there are changes (stack plan --exit-code); 130 interrupted.`

// UsageError is a command line that makes no sense.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func usage(format string, a ...any) error { return &UsageError{fmt.Errorf(format, a...)} }

// errNotConverged says that what was asked for was stored, and does not run.
var errNotConverged = errors.New("not converged")

// Explain turns an error into what to print and the exit code.
func (c *CLI) Explain(err error) (string, int) {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		return c.explainAll(several.Unwrap())
	}
	var u *UsageError
	switch {
	case errors.As(err, &u):
		return err.Error() + "\nSee --help.", ExitUsage
	case errors.Is(err, errNotConverged):
		return err.Error(), ExitNotConverged
	case errors.Is(err, errChanges):
		return err.Error(), ExitChanges
	case errors.Is(err, stack.ErrNotFound):
		return err.Error() + "; `muster stack ls` lists stacks", ExitNotFound
	case errors.Is(err, stack.ErrConflict):
		return err.Error(), ExitConflict
	case errors.Is(err, errNoAnswer):
		return err.Error(), ExitUnavailable
	case errors.Is(err, errUnhealthy), errors.Is(err, errNotReached):
		return err.Error(), ExitUnhealthy
	case errors.Is(err, context.Canceled):
		return "interrupted", ExitInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return c.unavailable("there was no answer in time"), ExitUnavailable
	}
	var origin *refusal
	if errors.As(err, &origin) {
		// The status of a wrapped error has the text of the wrapping one.
		err = origin.error
	}
	var inner interface {
		error
		GRPCStatus() *status.Status
	}
	if _, direct := err.(interface{ GRPCStatus() *status.Status }); !direct && errors.As(err, &inner) {
		// The wrapping error says what was attempted. Other requests may have succeeded.
		text, code := c.Explain(inner)
		return strings.Replace(err.Error(), inner.Error(), strings.Replace(text, refusedText, "the request was refused:", 1), 1), code
	}
	s, ok := status.FromError(err)
	if !ok {
		return err.Error(), ExitFailure
	}
	text := s.Message()
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			text = violations(text, d, origin)
		case *errdetails.PreconditionFailure:
			text = preconditions(text, d, origin)
		}
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return text, ExitUsage
	case codes.NotFound:
		return text, ExitNotFound
	case codes.AlreadyExists, codes.Aborted:
		return text, ExitConflict
	case codes.Unavailable, codes.DeadlineExceeded:
		return c.unavailable(text), ExitUnavailable
	case codes.Canceled:
		return "interrupted", ExitInterrupted
	case codes.ResourceExhausted:
		return text, ExitFailure
	}
	return fmt.Sprintf("%s (%s)", text, s.Code()), ExitFailure
}

// unavailable says what to look at when a call failed because something does not
// answer: apid itself, or what apid needs.
func (c *CLI) unavailable(why string) string {
	if c.answered.yes.Load() {
		return fmt.Sprintf("the API server at %s answers, but the cluster behind it cannot do this now: %s\n"+
			"`muster cluster status` shows which part of the cluster does not work.", c.address, why)
	}
	return fmt.Sprintf("the cluster at %s does not answer: %s\nIs apid running there? `muster dev` starts a cluster on this machine; "+
		"--address or MUSTER_ADDRESS says where another one is.", c.address, why)
}

// explainAll explains errors line by line. Their exit code is theirs if they have one
// in common. An interrupt ends the command, whatever failed before.
func (c *CLI) explainAll(errs []error) (string, int) {
	var lines []string
	code := 0
	for _, err := range errs {
		text, its := c.Explain(err)
		if !slices.Contains(lines, text) {
			lines = append(lines, text)
		}
		switch {
		case code == 0 || its == ExitInterrupted:
			code = its
		case code != its && code != ExitInterrupted:
			code = ExitFailure
		}
	}
	return strings.Join(lines, "\n"), code
}

// refusedText begins the list of what was refused.
const refusedText = "the request was refused, and nothing changed:"

// preconditions lists every reason, with the fields that it concerns.
func preconditions(message string, failure *errdetails.PreconditionFailure, origin *refusal) string {
	if len(failure.Violations) == 0 || origin == nil {
		return message
	}
	var reasons []string
	fields := map[string][]string{}
	for _, v := range failure.Violations {
		if fields[v.Description] == nil {
			reasons = append(reasons, v.Description)
		}
		fields[v.Description] = append(fields[v.Description], origin.setter(v.Subject))
	}
	var b strings.Builder
	b.WriteString(refusedText)
	for _, reason := range reasons {
		fmt.Fprintf(&b, "\n  %s: %s", strings.Join(fields[reason], ", "), reason)
	}
	return b.String()
}

// violations lists every field that was refused, one a line. Origin tells where
// the user set it; it may be nil.
func violations(message string, bad *errdetails.BadRequest, origin *refusal) string {
	if len(bad.FieldViolations) == 0 {
		return message
	}
	var b strings.Builder
	b.WriteString(refusedText)
	for _, v := range bad.FieldViolations {
		field, text := origin.explain(v)
		fmt.Fprintf(&b, "\n  %s: %s", field, text)
	}
	return b.String()
}
