package session

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/internal/backoff"
)

// refusalBackoff knows for how long dispatchers have refused this worker because it
// is not the node.
type refusalBackoff struct {
	// wasNode is set if this process was the node earlier.
	wasNode bool
	// since is the time of the first refusal after that.
	since time.Time
	// refusals counts the refusals in a row, and pauses grows with them.
	refusals int
	pauses   *backoff.Backoff
}

func newRefusalBackoff() *refusalBackoff {
	return &refusalBackoff{pauses: backoff.New(refusedPause, longestRefusedPause)}
}

// admitted notes a session in which this process was the node. If the session was
// short, two workers may be replacing each other, so the pauses stay long.
func (b *refusalBackoff) admitted(lasted time.Duration) {
	b.wasNode, b.since = true, time.Time{}
	if lasted > longestRefusedPause {
		b.refusals = 0
		b.pauses.Reset()
	}
}

// refusal returns why a session ended because this worker is not the node, or
// unspecified if it ended for another reason.
func refusal(err error, welcomed bool) dispatcherv1.Refusal_Reason {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*dispatcherv1.Refusal); ok {
			return r.GetReason()
		}
	}
	if welcomed && status.Code(err) == codes.Aborted {
		// This process has one session at a time, so a copy of it has the other:
		// a virtual machine was cloned while it ran.
		return dispatcherv1.Refusal_NODE_TAKEN
	}
	return dispatcherv1.Refusal_REASON_UNSPECIFIED
}

// refused notes that this worker is not the node. It removes the worker's tasks
// once that is certain to last: another worker runs them, or none must.
func (c *Client) refused(ctx context.Context, b *refusalBackoff, address string, reason dispatcherv1.Refusal_Reason, cause error) {
	if b.since.IsZero() {
		b.since = time.Now()
	}
	b.refusals++
	c.log.Error("dispatcher refuses this worker",
		zap.Stringer("reason", reason), zap.String("dispatcher", address),
		zap.Int("refusals", b.refusals), zap.Error(cause))
	var why string
	switch {
	case reason == dispatcherv1.Refusal_NODE_REMOVED:
		why = "the node was removed from the cluster"
	case b.wasNode && time.Since(b.since) >= takenPatience:
		// A worker that never was the node may be a copy of the other's disk. The tasks
		// that it remembers are the other's, and it has not touched them.
		why = "another worker has become the node"
	default:
		return
	}
	if err := c.cfg.Tasks.Abandon(ctx, why); err != nil {
		c.log.Error("failed to give up tasks", zap.Error(err))
	}
}
