package sdk

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Temporary returns an error that says that nothing is lost and the call should be repeated
// after the given time. 0 means the worker's own pause.
func Temporary(err error, after time.Duration) error {
	return &wire.Error{Code: codes.Unavailable, Temporary: true, RetryAfter: after, Err: err}
}

// NodeFault returns an error that fails the task. Another node may do better.
func NodeFault(err error) error {
	return &wire.Error{Code: codes.FailedPrecondition, Blame: wire.BlameNode, Err: err}
}

// SpecFault returns an error that fails the task. No node can do better until the user
// changes the given field of the payload or container spec, such as "command" or
// "mounts[0].source".
func SpecFault(field string, err error) error {
	if field != "" {
		err = fmt.Errorf("%s: %w", field, err)
	}
	return &wire.Error{Code: codes.InvalidArgument, Blame: wire.BlameSpec, Field: field, Err: err}
}

// Failed returns an error that fails the task and blames neither the node nor the spec.
func Failed(err error) error {
	return &wire.Error{Code: codes.Aborted, Err: err}
}

// NotFound returns an error that says that the executor holds nothing of the task.
func NotFound(taskID string) error {
	return &wire.Error{Code: codes.NotFound, Err: fmt.Errorf("no task %q here", taskID)}
}

// NoVolume says that the node has no volume of a name.
func NoVolume(name string) error {
	return &wire.Error{Code: codes.NotFound, Err: fmt.Errorf("no volume %q here", name)}
}

// VolumeInUse says that a volume is not removed because something uses it.
func VolumeInUse(name string, err error) error {
	return &wire.Error{Code: codes.FailedPrecondition, Err: fmt.Errorf("volume %q is in use: %w", name, err)}
}

// NotStarted returns an error that says that a task exists and was never started, so that
// there is no end to wait for.
func NotStarted(taskID string) error {
	return &wire.Error{Code: codes.FailedPrecondition, Err: fmt.Errorf("task %q has not been started", taskID)}
}

// IsNotFound reports whether an error is or wraps one of NotFound.
func IsNotFound(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == codes.NotFound
}
