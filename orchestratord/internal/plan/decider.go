package plan

import (
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
)

// decider is one decision in the making.
type decider struct {
	w *Input
	scope
	now  int64 // w.Now in milliseconds
	plan Plan
	slot slot // the slot in hand; reused, for most slots need nothing

	// rollout is the one in force, which this decision may have begun or ended.
	rollout *recordv1.Rollout
	// config says how the tasks are replaced.
	config config
	// target is what the service's tasks follow.
	target *target
	// former are targets of slots whose turn has not come, by what they were made of.
	former map[string]*target
	// waiting says that the service has to wait for others; nil if it was not asked yet.
	waiting *bool
}

// waits reports whether the service has to wait for others.
func (d *decider) waits() bool {
	if d.w.Waits == nil {
		return false
	}
	if d.waiting == nil {
		waiting := d.w.Waits() != ""
		d.waiting = &waiting
	}
	d.plan.WatchesDependencies = d.plan.WatchesDependencies || *d.waiting
	return *d.waiting
}

// dependent reports whether a task that is made of a target for a reason waits for other
// services: one that is there because the service was started, changed or scaled up. One
// that goes back to a former spec, in a slot whose turn has not come, takes the place of
// what ran there.
func (d *decider) dependent(of *target, why Reason) bool {
	switch why {
	case ReasonSlotEmpty, ReasonNodeEligible:
		return true
	case ReasonSpecChanged:
		return of == d.target && !d.rollout.GetRolledBack()
	default:
		return false
	}
}

// newDecider begins a decision on a scope, with a rollout in force.
func newDecider(w *Input, on scope, r *recordv1.Rollout) (*decider, error) {
	d := &decider{w: w, scope: on, now: w.Now.UnixMilli(), rollout: r}
	f := state.EffectiveSpec(w.Service, r)
	endpoint, err := state.EndpointDigest(f.Endpoint)
	if err != nil {
		return nil, err
	}
	if d.target, err = newTarget(w, f.Digest, endpoint, f.Version); err != nil {
		return nil, err
	}
	d.config = configOf(w.Service, r)
	return d, nil
}

// wake asks for another look at a time, in milliseconds.
func (d *decider) wake(at int64) {
	if t := time.UnixMilli(at); d.plan.Next.IsZero() || t.Before(d.plan.Next) {
		d.plan.Next = t
	}
}

// asked reports whether a task that is made for a reason is what a user asked
// for when the service was last changed. A global service's tasks follow the
// nodes, too: of them only the first are.
func (d *decider) asked(why Reason) bool {
	switch why {
	case ReasonSlotEmpty:
		return true
	case ReasonSpecChanged:
		return !d.rollout.GetRolledBack()
	case ReasonNodeEligible:
		return len(d.tasks) == 0
	default:
		return false
	}
}

// condition is that of the node that a task is assigned to. A task without a
// node has nothing to fear.
func (d *decider) condition(t *state.Task) Condition {
	if t.NodeID == "" {
		return Up
	}
	return d.w.Cluster.Condition(t.NodeID)
}

// groups cuts tasks, which are in order of their keys, into those of each slot.
func groups(tasks []*state.Task) [][]*state.Task {
	if len(tasks) == 0 {
		return nil
	}
	gs := make([][]*state.Task, 0, len(tasks))
	first := 0
	for i := 1; i <= len(tasks); i++ {
		if i == len(tasks) || !sameSlot(tasks[i], tasks[first]) {
			gs = append(gs, tasks[first:i:i])
			first = i
		}
	}
	return gs
}

func sameSlot(a, b *state.Task) bool {
	return a.Record.Slot == b.Record.Slot && (a.Record.Slot != 0 || a.Record.NodeId == b.Record.NodeId)
}

// removed ends all tasks of a service that is gone.
func (d *decider) removed() {
	if d.w.StopAfter.After(d.w.Now) {
		d.wake(d.w.StopAfter.UnixMilli())
		return
	}
	for _, g := range groups(d.tasks) {
		s := d.open(g[0].Record.Slot, g[0].Record.NodeId, g)
		s.drop(ReasonServiceRemoved)
		s.close()
	}
	d.plan.ForgetRollout = d.w.Rollout != nil
}
