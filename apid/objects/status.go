package objects

import (
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/specdiff"
	"github.com/musterhq/muster/internal/state"
)

// counts are the tasks of one service.
type counts struct {
	tasks int
	live  uint64
	// running and failing count by what the tasks were created from.
	running, failing tally
	// finished counts tasks that are the last of their slots, or were before the
	// task spec changed.
	finished int
	// nodes counts live tasks by the node that they are bound to, for global
	// services.
	nodes map[string]int
}

// hasOther reports whether some tasks that count are of another spec than this.
func (c *counts) hasOther(digest string) bool {
	for _, t := range []tally{c.running, c.failing} {
		for m := range t {
			if m.Spec != digest {
				return true
			}
		}
	}
	return false
}

// tally counts tasks by what they were created from.
type tally map[state.Origin]uint64

func (t tally) add(m state.Origin, step uint64) {
	if t[m] += step; t[m] == 0 {
		delete(t, m)
	}
}

// load is what the tasks on one node hold of it.
type load struct {
	tasks            uint64
	nanoCPUs, memory int64
}

// running reports whether a task counts as running.
func running(t *Task) bool {
	return t.Live() && t.State() == musterv1.TaskState_RUNNING
}

// failing reports whether a task does not run, and tasks of its slot have failed several
// times in a row. A task that could not be prepared counts itself, because it is
// replaced only after the delay.
func failing(t *Task) bool {
	s, failures := t.State(), t.Record.EarlyFailures
	if s == musterv1.TaskState_REJECTED {
		failures++
	}
	return t.Live() && s != musterv1.TaskState_RUNNING && s != musterv1.TaskState_COMPLETE && failures >= state.EarlyFailureLimit
}

// finished reports whether a task was the last of its slot, by its restart policy.
func finished(t *Task) bool {
	return state.Finished(t.Record) && t.Desired() < musterv1.TaskState_REMOVE
}

// live reports whether a task is meant to run and still may.
func live(t *Task) bool { return t.Live() && !t.Terminal() }

// holds reports whether a task holds something of its node.
func holds(t *Task) bool { return t.Assignment != nil && !t.Terminal() }

// statusOf counts a service's tasks.
func (v *View) statusOf(s *Service) Status {
	st := Status{Desired: 1}
	spec := s.Record.GetSpec()
	if r := spec.GetReplicated(); r != nil && r.Replicas != nil {
		st.Desired = *r.Replicas
	}
	c := v.counts[s.ID]
	if c == nil {
		c = &counts{}
	}
	if spec.GetGlobal() != nil {
		st.Desired = v.eligible(s, c)
	}
	st.Live = c.live
	current := v.currentTasks(s)
	for m, n := range c.running {
		st.Running += n
		st.RunningCurrent += current.count(m, n, running)
	}
	for m, n := range c.failing {
		if halted(s) {
			// Tasks of other specs are kept, too.
			st.Failing += n
			continue
		}
		st.Failing += current.count(m, n, failing)
	}
	if c.finished > 0 {
		st.Finished = v.finishedSlots(s, current)
	}
	if e, ok := v.tables.Placements.Get(v.now, state.PlacementKey(s.ID, s.Record.TaskDigest)); ok && e.Value.Pending > 0 {
		st.Pending = e.Value.Reason
	}
	return st
}

// halted reports whether tasks do not follow the service's spec and will not do so
// by themselves.
func halted(s *Service) bool {
	return s.Rollout != nil && state.IsCurrent(s.Record, s.Rollout) && state.Halted(s.Rollout)
}

// finishedSlots counts the slots whose newest task is the last one, by its restart
// policy and the present spec.
func (v *View) finishedSlots(s *Service, current *currentTasks) uint64 {
	type place struct {
		slot uint64
		node string
	}
	newest := map[place]*Task{}
	for joined := range v.follower.ServiceTasks(s.ID) {
		t := &Task{joined}
		if t.Desired() >= musterv1.TaskState_REMOVE {
			continue
		}
		at := place{t.Record.Slot, t.Record.NodeId}
		if other := newest[at]; other == nil || t.Record.CreatedAt > other.Record.CreatedAt {
			newest[at] = t
		}
	}
	var n uint64
	for _, t := range newest {
		if finished(t) && (halted(s) || current.is(t)) {
			n++
		}
	}
	return n
}

// currentTasks tells which tasks of a service comply with its spec. The orchestrator
// leaves exactly these as they are, so it decides by the same packages.
type currentTasks struct {
	v       *View
	service *Service
	origin  state.Origin
	spec    *musterv1.TaskSpec
	// matches reports whether a node meets the constraints. It is nil until it is
	// needed.
	matches func(*Node) bool
}

func (v *View) currentTasks(s *Service) *currentTasks {
	// What cannot be encoded was never stored.
	endpoint, _ := state.EndpointDigest(s.Record.GetSpec().GetEndpoint())
	c := &currentTasks{v: v, service: s, origin: state.Origin{Spec: string(s.Record.TaskDigest), Endpoint: string(endpoint)}}
	c.spec = v.taskSpec(c.origin.Spec)
	return c
}

// taskSpec returns a task spec by its digest, or nil if it is gone.
func (v *View) taskSpec(digest string) *musterv1.TaskSpec {
	e, _ := v.tables.Specs.Get(v.now, state.SpecKey([]byte(digest)))
	return e.Value.GetTask()
}

// count counts those of n tasks made of the same that are current and of a kind.
func (c *currentTasks) count(m state.Origin, n uint64, kind func(*Task) bool) uint64 {
	if m == c.origin {
		return n
	}
	var current uint64
	change := c.change(m)
	count := func(t *Task) {
		if t.ServiceID == c.service.ID && kind(t) && state.OriginOf(t.Record) == m && c.keeps(t, change) {
			current++
		}
	}
	switch {
	case !change.Replaces:
		for t := range c.v.follower.ServiceTasks(c.service.ID) {
			count(&Task{t})
		}
	case c.global():
		for node := range c.v.paused {
			for t := range c.v.follower.NodeTasks(node) {
				count(&Task{t})
			}
		}
	}
	return current
}

func (c *currentTasks) global() bool { return c.service.Record.GetSpec().GetGlobal() != nil }

// is reports whether a task is current.
func (c *currentTasks) is(t *Task) bool {
	m := state.OriginOf(t.Record)
	return m == c.origin || c.keeps(t, c.change(m))
}

// change returns how the present spec differs from what tasks were made of.
func (c *currentTasks) change(m state.Origin) specdiff.Change {
	if m.Endpoint != c.origin.Endpoint || c.spec == nil {
		return specdiff.Change{Replaces: true}
	}
	return specdiff.Tasks(c.v.taskSpec(m.Spec), c.spec)
}

// keeps reports whether a task need not be replaced because of a change.
func (c *currentTasks) keeps(t *Task, change specdiff.Change) bool {
	if _, paused := c.v.paused[t.NodeID]; paused && c.global() {
		// Updates leave alone what a global service has on a paused node, unless it must
		// leave the node.
		return c.meets(t.NodeID)
	}
	return change.Keeps(t.NodeID, t.State(), c.meets)
}

// meets reports whether a node meets the service's constraints.
func (c *currentTasks) meets(id string) bool {
	if c.matches == nil {
		var err error
		if c.matches, err = c.v.matcher(c.spec); err != nil {
			c.matches = func(*Node) bool { return false }
		}
	}
	n, known := c.v.nodes.Get(id)
	return known && c.matches(n)
}

// eligible counts the nodes that are to have a task of a global service: those
// that may get one, and those that have one.
func (v *View) eligible(s *Service, c *counts) uint64 {
	n := uint64(len(c.nodes))
	e, ok := v.tables.Specs.Get(v.now, state.SpecKey(s.Record.TaskDigest))
	if !ok {
		return n
	}
	matches, err := v.matcher(e.Value.Task)
	if err != nil {
		return n
	}
	v.nodes.Scan(func(id string, node *Node) bool {
		if c.nodes[id] == 0 && node.State.State != musterv1.NodeStatus_DOWN &&
			node.Spec().Availability == musterv1.NodeSpec_ACTIVE && matches(node) {
			n++
		}
		return true
	})
	return n
}

// matcher reports whether nodes meet a task spec's constraints.
func (v *View) matcher(t *musterv1.TaskSpec) (func(*Node) bool, error) {
	constraints, err := placement.ParseConstraints(t.GetPlacement().GetConstraints())
	if err != nil || len(constraints) == 0 {
		return func(*Node) bool { return true }, err
	}
	return func(n *Node) bool { return constraints.Match(placement.NewNode(n.ID, n.State, n.Record)) }, nil
}
