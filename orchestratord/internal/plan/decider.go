package plan

import (
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// decider is one decision in the making.
type decider struct {
	w    *World
	now  int64 // w.Now in milliseconds
	plan Plan
	slot slot // the slot in hand; reused, for most slots need nothing

	// The rest is derived from the service, once.
	spec       *musterv1.TaskSpec
	policy     policy
	startFirst bool
	limit      int64
	matches    func(node string) bool
	drifts     map[string]drift // how former specs differ, by digest
	endpoint   []byte           // digest of what the service publishes

	// outdated counts slots that had tasks of a former spec; unsettled counts
	// those that do not run a task of the current one yet.
	outdated, unsettled int
}

func (d *decider) prepare() error {
	s := d.w.Service
	d.spec = d.w.Spec(s.TaskDigest)
	if d.spec == nil {
		return fmt.Errorf("%w: digest %s", ErrSpecUnknown, state.SpecKey(s.TaskDigest))
	}
	d.policy = policyOf(d.spec.GetRestart())
	d.startFirst = s.GetSpec().GetUpdate().GetOrder() == musterv1.UpdateConfig_START_FIRST
	var err error
	if d.endpoint, err = state.EndpointDigest(s.GetSpec().GetEndpoint()); err != nil {
		return err
	}
	d.limit = d.w.HistoryLimit
	if d.policy.attempts > 0 {
		// As many as the policy speaks of are always to be seen.
		d.limit = int64(min(d.policy.attempts, 1<<31)) + 1
	}
	if d.matches, err = d.w.Cluster.Matcher(d.spec.GetPlacement().GetConstraints()); err != nil {
		return fmt.Errorf("constraints of the service: %w", err)
	}
	return nil
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
	case ReasonSlotEmpty, ReasonSpecChanged:
		return true
	case ReasonNodeEligible:
		return len(d.w.Tasks) == 0
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
	for _, g := range groups(d.w.Tasks) {
		s := d.open(g[0].Record.Slot, g[0].Record.NodeId, g)
		s.drop(ReasonServiceRemoved)
		s.close()
	}
	d.plan.ForgetRollout = d.w.Rollout != nil
}
