package session

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// exile is how long dispatchers have said that this worker is not the node.
type exile struct {
	// wasNode: earlier, this process was the node.
	wasNode bool
	// since is when the first refusal came since then.
	since time.Time
	// refusals counts those that make the pauses longer.
	refusals int
}

// admitted ends the exile: this process has been the node for a while. If that
// was a short one, two workers may be throwing each other out.
func (e exile) admitted(lasted time.Duration) exile {
	if lasted > longestRefusedPause {
		return exile{wasNode: true}
	}
	return exile{wasNode: true, refusals: e.refusals}
}

// refusal returns why a session ended for which this worker is not the node; or
// unspecified, if it ended for another reason.
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

// refused takes in that this worker is not the node. Its tasks go when that is
// for good: another runs them, or nobody is to.
func (c *Client) refused(ctx context.Context, e exile, address string, reason dispatcherv1.Refusal_Reason, cause error) exile {
	if e.since.IsZero() {
		e.since = time.Now()
	}
	e.refusals++
	c.log.Error("the dispatcher refuses this worker",
		zap.Stringer("reason", reason), zap.String("dispatcher", address),
		zap.Int("refusals", e.refusals), zap.Error(cause))
	var why string
	switch {
	case reason == dispatcherv1.Refusal_NODE_REMOVED:
		why = "the node was removed from the cluster"
	case e.wasNode && time.Since(e.since) >= takenPatience:
		// One that never was the node may be a copy of the other's disk, and what it
		// remembers is the other's. It has not touched it.
		why = "another worker has become the node"
	default:
		return e
	}
	if err := c.cfg.Tasks.Abandon(ctx, why); err != nil {
		c.log.Error("tasks are not given up", zap.Error(err))
	}
	return e
}
