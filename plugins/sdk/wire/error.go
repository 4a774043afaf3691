package wire

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
)

// Blame says whom an error is for.
type Blame = executorv1.ExecutorError_Blame

// Whom an error is for.
const (
	// BlameNobody leaves it open.
	BlameNobody = executorv1.ExecutorError_BLAME_UNSPECIFIED
	// BlameNode means that another node may do better.
	BlameNode = executorv1.ExecutorError_NODE
	// BlameSpec means that the user must change the spec.
	BlameSpec = executorv1.ExecutorError_SPEC
)

// defaultRetry is how long to wait after a temporary error that does not say.
const defaultRetry = time.Second

// Error is an executor's error with all that the contract lets it say. It is
// the same on both sides of the wire, but for Err: a worker gets its text.
type Error struct {
	// Code is the gRPC status code.
	Code codes.Code
	// Temporary means: try again, nothing is lost.
	Temporary bool
	// RetryAfter is how long to wait before that. 0 leaves it to Delay.
	RetryAfter time.Duration
	// Blame says whom the error is for.
	Blame Blame
	// Field is the field of the payload or container spec that is wrong.
	Field string
	// Err is what went wrong.
	Err error
}

// Error returns the text of the cause. The field is part of it only if
// the author of the error put it there.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Code.String()
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Delay is how long to wait before a temporary error's call is made again.
func (e *Error) Delay() time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	return defaultRetry
}

// GRPCStatus is the error as it goes over the wire. gRPC calls it, also for an
// Error that is wrapped in another.
func (e *Error) GRPCStatus() *status.Status {
	code := e.Code
	if code == codes.OK {
		code = codes.Unknown
	}
	// A protobuf string is UTF-8; a file name in an error's text need not be.
	text := strings.ToValidUTF8(e.Error(), "\uFFFD")
	field := strings.ToValidUTF8(e.Field, "\uFFFD")
	detail := &executorv1.ExecutorError{Temporary: e.Temporary, Blame: e.Blame, Field: field}
	if e.RetryAfter > 0 {
		detail.RetryAfter = durationpb.New(e.RetryAfter)
	}
	bare := status.New(code, text)
	full, err := bare.WithDetails(detail)
	if err != nil {
		return bare
	}
	return full
}

// ToStatus makes an error ready for the wire. An Error anywhere in its chain
// keeps its meaning, a context's end becomes CANCELLED or DEADLINE_EXCEEDED,
// a gRPC status stays what it is. Of any other error only the text is known:
// it becomes UNKNOWN, fatal or temporary as the argument says.
func ToStatus(err error, temporary bool) error {
	if err == nil {
		return nil
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	switch {
	case errors.Is(err, context.Canceled):
		err = &Error{Code: codes.Canceled, Temporary: true, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		err = &Error{Code: codes.DeadlineExceeded, Temporary: true, Err: err}
	default:
		err = &Error{Code: codes.Unknown, Temporary: temporary, Err: err}
	}
	return status.Convert(err).Err()
}

// FromStatus reads an error that came over the wire. What the executor did not
// say itself follows from the status code, as the contract has it. It returns
// nil for nil, and an *Error for everything else.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st := statusOf(err)
	result := &Error{Code: st.Code(), Err: errors.New(st.Message())}
	for _, detail := range st.Details() {
		said, ok := detail.(*executorv1.ExecutorError)
		if !ok {
			continue
		}
		result.Temporary = said.GetTemporary()
		result.RetryAfter = max(said.GetRetryAfter().AsDuration(), 0)
		result.Blame = said.GetBlame()
		result.Field = said.GetField()
		return result
	}
	switch st.Code() {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented, codes.NotFound:
	default:
		result.Temporary = true
	}
	return result
}

// statusOf returns the status in an error's chain, or the one that a context's
// end has.
func statusOf(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}
