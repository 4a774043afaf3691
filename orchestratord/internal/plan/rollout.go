package plan

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

const (
	messageUpdating   = "update in progress"
	messageUpdated    = "update completed"
	messageRollsBack  = "rollback in progress, as was asked for"
	messageRolledBack = "rollback completed"
)

// judge says what the rollout should be, given where the slots stand: the very same
// record if it stays as it is.
func (d *decider) judge(v progress) *recordv1.Rollout {
	s, r := d.w.Service, d.rollout
	switch {
	case r == nil || !state.IsCurrent(s, r):
		return d.start(v)
	case underWay(r):
		switch {
		case d.config.tooMany(v.failed, r.Slots):
			return d.stop(v)
		case v.due+v.inFlight == 0 && !v.watched:
			return d.complete(v)
		}
	case completed(r) && v.due > 0:
		// A node is back that was paused all the while, say.
		return d.start(v)
	}
	return r
}

// start begins a rollout to what the tasks follow. If no task needs to be
// replaced it has ended already, and is recorded only if it is an update at all.
func (d *decider) start(v progress) *recordv1.Rollout {
	s, old := d.w.Service, d.rollout
	if v.due == 0 && old == nil && len(s.FormerTaskDigest) == 0 && !s.RollsBack {
		return nil
	}
	r := &recordv1.Rollout{
		State: musterv1.UpdateStatus_UPDATING, Message: messageUpdating, StartedAt: d.now,
		SpecVersion: s.SpecVersion, Attempt: s.Attempt, Number: old.GetNumber() + 1, Slots: v.due,
		RolledBack: old.GetRolledBack() && state.IsCurrent(s, old),
	}
	switch {
	case s.RollsBack:
		r.State, r.Message = musterv1.UpdateStatus_ROLLBACK_STARTED, messageRollsBack
	case r.RolledBack:
		r.State, r.Message = old.State, old.Message
		if completed(old) {
			r.State = musterv1.UpdateStatus_ROLLBACK_STARTED
		}
	}
	return r
}

// stop does what the update's config asks for when too many slots have failed. A
// rollback is never rolled back.
func (d *decider) stop(v progress) *recordv1.Rollout {
	s, r := d.w.Service, proto.CloneOf(d.rollout)
	_, _, task := state.SplitKey(v.blame.Key)
	because := fmt.Sprintf("due to failure or early termination of task %s (%d of %d slots failed)", task, v.failed, max(r.Slots, v.failed))
	r.Failures = v.failed
	switch {
	case r.State == musterv1.UpdateStatus_ROLLBACK_STARTED:
		r.State, r.Message = musterv1.UpdateStatus_ROLLBACK_PAUSED, "rollback paused "+because
	case d.config.action != musterv1.UpdateConfig_ROLLBACK:
		r.State, r.Message = musterv1.UpdateStatus_PAUSED, "update paused "+because
	case len(s.FormerTaskDigest) == 0 || d.w.Spec(s.FormerTaskDigest) == nil:
		r.State, r.Message = musterv1.UpdateStatus_PAUSED, "update paused "+because+": there is no former spec to go back to"
	default:
		r.State, r.Message = musterv1.UpdateStatus_ROLLBACK_STARTED, "update rolled back "+because
		r.Number, r.RolledBack, r.Slots = r.Number+1, true, 0
	}
	return r
}

// complete ends a rollout.
func (d *decider) complete(v progress) *recordv1.Rollout {
	r := proto.CloneOf(d.rollout)
	r.CompletedAt, r.Failures = d.now, v.failed
	switch {
	case r.State == musterv1.UpdateStatus_UPDATING:
		r.State, r.Message = musterv1.UpdateStatus_COMPLETED, messageUpdated
	case r.RolledBack:
		// Why it was rolled back is still to be read.
		r.State, r.Message = musterv1.UpdateStatus_ROLLBACK_COMPLETED, messageRolledBack+": "+r.Message
	default:
		r.State, r.Message = musterv1.UpdateStatus_ROLLBACK_COMPLETED, messageRolledBack
	}
	return r
}
