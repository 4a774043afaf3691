package plan

import (
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// scope is what one decision is made on: all tasks of a service, or those of the
// slots that are not settled.
type scope struct {
	tasks []*state.Task
	// settled are the slots that are left out, because there is nothing to do about them.
	// They count as replicas, and their numbers are not free.
	settled map[uint64]struct{}
}

// unsettled returns the scope without the slots that are settled. It returns false if
// there may be more to decide than what one slot is to do: if an update is under way,
// say.
func (w *Input) unsettled() (scope, bool) {
	s, r := w.Service, w.Rollout
	replicas, counted := Replicas(s)
	if s == nil || !counted || r != nil && (r.State != musterv1.UpdateStatus_COMPLETED || r.SpecVersion != s.SpecVersion) {
		return scope{}, false
	}
	spec := w.Spec(s.GetTaskDigest())
	endpoint, err := state.EndpointDigest(s.GetSpec().GetEndpoint())
	if spec == nil || err != nil {
		return scope{}, false
	}
	matches, err := w.Cluster.Matcher(spec.GetPlacement().GetConstraints())
	if err != nil {
		return scope{}, false
	}
	of := state.Origin{Spec: string(s.GetTaskDigest()), Endpoint: string(endpoint)}
	w.Tasks.settle(of, func(t *state.Task) bool {
		return t.Desired() == musterv1.TaskState_RUNNING && t.State() == musterv1.TaskState_RUNNING && state.OriginOf(t.Record) == of &&
			w.Cluster.Condition(t.NodeID).Keeps() && matches(t.NodeID) && w.Cluster.Room(t)
	})
	if n := uint64(len(w.Tasks.settled)); n == 0 || n > replicas {
		return scope{}, false
	}
	return scope{tasks: w.Tasks.unsettledTasks(), settled: w.Tasks.settled}, true
}

// needsAll reports whether a plan for the unsettled slots rests on the others: it gives
// up slots, which are chosen among all, or begins an update, which counts all that are
// in their turn.
func (p *Plan) needsAll() bool {
	return p.Bounded || slices.ContainsFunc(p.Slots, func(s Slot) bool { return s.Vacates })
}
