package sdk

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Temporary says that nothing is lost and the call should be made again, not
// before the given time has passed. 0 means the worker's own pause.
func Temporary(err error, after time.Duration) error {
	return &wire.Error{Code: codes.Unavailable, Temporary: true, RetryAfter: after, Err: err}
}

// NodeFault fails the task and says that another node may do better.
func NodeFault(err error) error {
	return &wire.Error{Code: codes.FailedPrecondition, Blame: wire.BlameNode, Err: err}
}

// SpecFault fails the task and says that no node will do better before the
// user has changed the given field of the payload or container spec:
// "command", "mounts[0].source".
func SpecFault(field string, err error) error {
	if field != "" {
		err = fmt.Errorf("%s: %w", field, err)
	}
	return &wire.Error{Code: codes.InvalidArgument, Blame: wire.BlameSpec, Field: field, Err: err}
}

// Failed fails the task and blames neither the node nor the spec.
func Failed(err error) error {
	return &wire.Error{Code: codes.Aborted, Err: err}
}

// NotFound says that the executor holds nothing of the task.
func NotFound(taskID string) error {
	return &wire.Error{Code: codes.NotFound, Err: fmt.Errorf("no task %q here", taskID)}
}

// NotStarted says that a task is there and was never started, so that there is
// no end to wait for.
func NotStarted(taskID string) error {
	return &wire.Error{Code: codes.FailedPrecondition, Err: fmt.Errorf("task %q has not been started", taskID)}
}

// IsNotFound tells whether an error is or wraps one of NotFound.
func IsNotFound(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == codes.NotFound
}
