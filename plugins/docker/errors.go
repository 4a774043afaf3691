package docker

import (
	"context"
	"errors"
	"time"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/musterhq/muster/plugins/sdk"
)

// awayRetry is how long to wait for an Engine that does not answer. It restarts
// within some seconds.
const awayRetry = 2 * time.Second

// engineError makes an error temporary if the Engine did not answer, or said
// that it cannot now: the container may be running all the while. What the
// Engine did say is left to the caller to judge.
func engineError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if class := cerrdefs.Resolve(err); errors.Is(class, cerrdefs.ErrUnknown) || errors.Is(class, cerrdefs.ErrUnavailable) {
		return sdk.Temporary(err, awayRetry)
	}
	return err
}

func isNotFound(err error) bool { return cerrdefs.IsNotFound(err) || sdk.IsNotFound(err) }
func isConflict(err error) bool { return cerrdefs.IsConflict(err) }
func isInvalid(err error) bool  { return cerrdefs.IsInvalidArgument(err) }
func isUnable(err error) bool   { return cerrdefs.IsNotImplemented(err) }
func isInternal(err error) bool { return cerrdefs.IsInternal(err) }
