// Package plan decides what the orchestrator does for one service. It is pure:
// an [Input] goes in, a [Plan] comes out, and nothing else is read, written,
// waited for or remembered. Time and the ids of new tasks are part of the
// input, so the same input always gives the same plan.
//
// A decision rests on what is, and never on what has just happened. So it does
// not matter how often a service is looked at, by whom, or what was missed: a
// world in which the last plan has been carried out gives an empty plan, or ends a
// rollout with it, until something else changes or [Plan.Next] has come.
//
// # Slots
//
// A service's tasks are grouped into slots: one for each replica, or one for
// each node that runs a global service. The tasks of a slot are one after the
// other: at most one of them is meant to run, beside the one that it replaces
// when the update order says "start first". What is decided for one slot
// depends on the tasks of this slot alone, and is carried out as a whole or not
// at all, if the slot is still what the decision rests on.
//
// # Updates
//
// When a service is to run something else, its slots are given their turn, a few
// at a time. A rollout's record says that an update is under way and how it is
// to end; where it has come to is read off the tasks. A slot whose turn has
// not come is kept by what its tasks were made of, as if there were no update. In
// its turn it gets a new task, which is marked; once that runs, or has ended, and
// the delay is over, another slot may have its turn. What became of the marked task
// is handed on to the task that follows it, so it is not forgotten with it.
//
// # Life of a task
//
// A task is made with desired state RUNNING, or READY if it has to wait: for a
// restart delay, or for the task that it replaces to stop. READY lets its
// worker fetch and prepare what it needs meanwhile. Desired SHUTDOWN ends it
// and keeps its record as history; desired REMOVE ends it, and its record goes
// as soon as it has stopped.
//
// A task of a service that depends on others is made with desired state NEW while they
// are not there. It gets no node before it is raised. Only what a user asked for waits so:
// a task that replaces one that failed, or whose node was lost, does not.
package plan

import (
	"fmt"
	"iter"
	"slices"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
)

// Input is all that a decision about one service rests on.
type Input struct {
	Now       time.Time
	ServiceID string
	// Service is nil when the service has been removed.
	Service *recordv1.Service
	// Rollout is nil if there was no update yet.
	Rollout *recordv1.Rollout
	// Tasks are all tasks of the service.
	Tasks *Index
	// WholeAfter is the time before which no decision may be made that takes all slots.
	// Zero: there is none.
	WholeAfter time.Time
	// Spec returns the task spec with a digest, or nil if it is not known.
	Spec    func(digest []byte) *musterv1.TaskSpec
	Cluster Cluster
	// HistoryLimit is how many tasks of a slot are kept, the running one
	// included. A negative limit keeps all.
	HistoryLimit int64
	// NewID returns the id of a new task.
	NewID func() string
	// Waits returns what the service has to wait for before new tasks of it start, or "".
	// It is nil if the service depends on no other.
	Waits func() string
	// StopAfter is the time before which tasks of a service that was removed are left
	// alone, because services that depend on it still stop. Zero: there is none.
	StopAfter time.Time
}

// Cluster is what a decision needs to know of the nodes.
type Cluster interface {
	// Condition says whether a node's tasks may stay there.
	Condition(node string) Condition
	// Nodes yields the ids of all nodes, in order.
	Nodes() iter.Seq[string]
	// Room says whether a task's node has room for what the task reserves.
	Room(task *state.Task) bool
	// Matcher returns a function that reports whether a node meets constraints.
	Matcher(constraints []string) (func(node string) bool, error)
}

// Condition is what becomes of tasks on a node.
type Condition uint8

// The conditions.
const (
	// Gone is the condition of a node that was removed or never was.
	Gone Condition = iota
	// Up nodes run tasks. So do nodes that have not been heard of for a moment.
	Up
	// Paused nodes keep their tasks and take no new ones.
	Paused
	// Drained nodes give their tasks up.
	Drained
	// Down nodes have not been heard of for so long that their tasks are
	// replaced.
	Down
)

// Keeps reports whether tasks on the node stay there.
func (c Condition) Keeps() bool { return c == Up || c == Paused }

// unreachable reports whether it is of no use to wait for the node to stop a
// task.
func (c Condition) unreachable() bool { return c == Down || c == Gone }

// Plan is what to do for one service.
type Plan struct {
	// Slots are those in which something is to change.
	Slots []Slot
	// Rollout is the record to write; nil leaves what is there.
	Rollout *recordv1.Rollout
	// ForgetRollout says that the record must be deleted.
	ForgetRollout bool
	// Next is when to look again although nothing has changed. Zero: never.
	Next time.Time
	// WatchesRunning says that a task that becomes RUNNING is a reason to look
	// again.
	WatchesRunning bool
	// WatchesDependencies says that tasks wait for other services, whose changes are a
	// reason to look again.
	WatchesDependencies bool
	// Number and State are those of the rollout that the plan rests on, or that it
	// writes. The slots may change only while it is in force.
	Number uint64
	State  musterv1.UpdateStatus_State
	// Bounded says that only so many slots may have their turn at once. Turns then are
	// the keys of all tasks that are InTurn, in order: slots must not begin their turn
	// if there are others.
	Bounded bool
	Turns   []string
	// Whole says that the decision took all slots, and not only those that are not
	// settled.
	Whole bool
	// Postponed says that the decision takes all slots, and must not be made before Next.
	Postponed bool
}

// Empty reports whether there is nothing to do now.
func (p *Plan) Empty() bool {
	return len(p.Slots) == 0 && p.Rollout == nil && !p.ForgetRollout
}

// Slot is what to do in one slot, as a whole or not at all.
type Slot struct {
	// Prefix is that of the keys of the slot's tasks.
	Prefix string
	// Seen are the slot's tasks that the decision rests on, in order of keys.
	Seen    []Seen
	Changes []Change
	// Fills says that a slot in which no task was meant to run gets one. It
	// must not lead to more of them than the service has replicas.
	Fills bool
	// Begins says that the slot has its turn in an update.
	Begins bool
	// Vacates says that the slot is given up. It must not lead to fewer slots
	// than the service has replicas.
	Vacates bool
	// Lost are the nodes whose tasks are given up because they are drained,
	// down or gone. It must still be so.
	Lost []string
	// Unfit are the nodes whose tasks are given up because they do not meet the
	// Constraints. It must still be so.
	Unfit       []string
	Constraints []string
	// Crowded are the nodes whose tasks are given up because they reserve more than
	// there is, or because they were refused. It must still be so.
	Crowded []string
}

// Seen is one task that a decision rests on.
type Seen struct {
	Key     string
	Version uint64
}

// Change writes or deletes one task's record.
type Change struct {
	Key string
	// Record is what to write; nil deletes.
	Record *recordv1.Task
	Reason Reason
}

// mostSteps bounds how often one decision begins or ends a rollout: an update may
// begin, fail, and have been rolled back by what is there already.
const mostSteps = 6

// Decide says what to do for a service. It decides on the slots that are not settled,
// if that is enough. What needs all of them, because there are too many slots, say, is
// decided on all, and not too often for many. It returns an error if the service
// cannot be decided on, which is no fault of its tasks: they must be left alone.
func Decide(w *Input) (Plan, error) {
	if s, ok := w.unsettled(); ok {
		p, err := w.decide(s)
		if err != nil || !p.needsAll() {
			return p, err
		}
	}
	if w.Now.Before(w.WholeAfter) {
		return Plan{Next: w.WholeAfter, Postponed: true}, nil
	}
	p, err := w.decide(scope{tasks: w.Tasks.All()})
	p.Whole = true
	return p, err
}

// decide decides on the slots of a scope.
func (w *Input) decide(on scope) (Plan, error) {
	if w.Service == nil {
		d := &decider{w: w, scope: on, now: w.Now.UnixMilli()}
		d.removed()
		return d.plan, nil
	}
	r := w.Rollout
	for range mostSteps {
		d, err := newDecider(w, on, r)
		if err != nil {
			return Plan{}, err
		}
		m, err := d.mode()
		if err != nil {
			return Plan{}, err
		}
		wantedSlots := m.wantedSlots()
		v := d.progress(wantedSlots)
		if r != w.Rollout && underWay(r) && r.Slots == 0 {
			r.Slots = v.due // of the rollback that has just begun
		}
		next := d.judge(v)
		if next == r {
			d.startSteps(wantedSlots, v)
			m.act()
			d.tell(v)
			return d.plan, nil
		}
		r = next
	}
	return Plan{}, fmt.Errorf("%w: its rollout %v does not come to rest", ErrUnsupported, r)
}

// mode is how a service's slots are found. Its wantedSlots are those that are wanted
// and have had tasks; act then does what there is to do in all slots.
type mode interface {
	wantedSlots() []*slotState
	act()
}

func (d *decider) mode() (mode, error) {
	if replicas, ok := Replicas(d.w.Service); ok {
		return d.replicated(replicas), nil
	}
	if d.w.Service.GetSpec().GetGlobal() != nil {
		return d.global(), nil
	}
	return nil, fmt.Errorf("%w: %T", ErrUnsupported, d.w.Service.GetSpec().GetMode())
}

// tell completes the plan with what it rests on.
func (d *decider) tell(v progress) {
	if d.rollout != d.w.Rollout {
		d.plan.Rollout = d.rollout
	}
	d.plan.Number, d.plan.State = d.rollout.GetNumber(), d.rollout.GetState()
	if v.inFlight > 0 {
		d.plan.WatchesRunning = true
	}
	begins := func(s Slot) bool { return s.Begins }
	if d.config.parallelism == 0 || !slices.ContainsFunc(d.plan.Slots, begins) {
		return
	}
	d.plan.Bounded = true
	for _, t := range d.tasks {
		if InTurn(t.Record) {
			d.plan.Turns = append(d.plan.Turns, t.Key)
		}
	}
}

// Replicas returns how many slots a service should have, and whether that is a
// number of its own: a global service has as many as there are nodes.
func Replicas(s *recordv1.Service) (uint64, bool) {
	switch s.GetSpec().GetMode().(type) {
	case nil, *musterv1.ServiceSpec_Replicated:
		return defaults.Replicas(s.GetSpec()), true
	default:
		return 0, false
	}
}
