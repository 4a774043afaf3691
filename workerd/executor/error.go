package executor

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// defaultRetry is how long to wait after a temporary error that does not say.
const defaultRetry = time.Second

// Error is why an executor did not do what it was asked to.
type Error struct {
	// Code is the class of the error.
	Code codes.Code
	// Temporary means that the call can be made again, and nothing is lost.
	Temporary bool
	// RetryAfter is how long to wait before that. 0 leaves it to Delay.
	RetryAfter time.Duration
	// BlameNode means that another node may do better.
	BlameNode bool
	// Absent means that the node lacks the executor.
	Absent bool
	// NotCalled means that the executor was not reached: it holds nothing that it did
	// not hold before.
	NotCalled bool
	Err       error
}

// Error returns the text of the cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Code.String()
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Delay returns how long to wait before a call that failed for now is made again.
func (e *Error) Delay() time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	return defaultRetry
}

// ErrorOf returns what an error of a call says, with the text of the whole error. An
// error of unknown kind may pass. ErrorOf returns nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: codes.Unknown, Temporary: true, Err: err}
	}
	whole := *e
	whole.Err = err
	return &whole
}

// NoHolder is the error of a set without the executor that holds a task.
func NoHolder(name string) error {
	return &Error{Code: codes.FailedPrecondition, BlameNode: true, Absent: true, Err: fmt.Errorf("executor %s, which holds the task, is no longer on this node", name)}
}

// NoExecutor is the error of a set that has no executor for a kind and is not
// going to have one: fatal to the task, and no fault of its spec.
func NoExecutor(kind string) error {
	return &Error{Code: codes.FailedPrecondition, BlameNode: true, Absent: true, Err: fmt.Errorf("no executor on this node runs %q", kind)}
}
