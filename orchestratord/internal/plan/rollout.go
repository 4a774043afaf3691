package plan

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	messageUpdating  = "update in progress"
	messageCompleted = "update completed"
)

// rollout tells how far an update has come. A service that was never updated
// has none.
func (d *decider) rollout() {
	s, r := d.w.Service, d.w.Rollout
	switch {
	case r != nil && r.SpecVersion == s.SpecVersion:
		if r.State != musterv1.UpdateStatus_UPDATING {
			return
		}
		if d.unsettled > 0 {
			d.plan.WatchesRunning = true
			return
		}
		done := proto.CloneOf(r)
		done.State, done.Message, done.CompletedAt = musterv1.UpdateStatus_COMPLETED, messageCompleted, d.now
		d.plan.Rollout = done
	case d.outdated > 0 && d.unsettled > 0:
		d.plan.WatchesRunning = true
		d.plan.Rollout = &recordv1.Rollout{
			State: musterv1.UpdateStatus_UPDATING, Message: messageUpdating,
			StartedAt: d.now, SpecVersion: s.SpecVersion,
		}
	case d.outdated > 0 || r != nil || len(s.PreviousTaskDigest) > 0 && !bytes.Equal(s.PreviousTaskDigest, s.TaskDigest):
		d.plan.Rollout = &recordv1.Rollout{
			State: musterv1.UpdateStatus_COMPLETED, Message: messageCompleted,
			StartedAt: d.now, CompletedAt: d.now, SpecVersion: s.SpecVersion,
		}
	}
}
