package plan

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// slot is one slot in the making: what its tasks are, and what shall become of
// them.
type slot struct {
	d *decider
	// target is what the slot's task should be made of.
	target       *target
	number       uint64
	node         string
	tasks        []*state.Task
	dispositions []disposition // one for each of tasks
	// oldTask is the task of a former spec that runs until a new one does, or
	// while there is none; -1 if there is no such task.
	oldTask int
	// made is the task to create, if any.
	made       *recordv1.Task
	madeReason Reason
	vacates    bool
	begins     bool
	lost       []string
	unfit      []string
	crowded    []string
}

// disposition says what is decided on a task.
type disposition struct {
	desired musterv1.TaskState
	reason  Reason
	deleted bool
	// finished says that no task may follow this one. The record keeps it, because
	// what led to it may be forgotten by then.
	finished bool
}

// open begins with a slot. Only one is open at a time.
func (d *decider) open(number uint64, node string, tasks []*state.Task) *slot {
	s := &d.slot
	*s = slot{d: d, target: d.target, number: number, node: node, tasks: tasks, dispositions: s.dispositions[:0], oldTask: -1}
	for _, t := range tasks {
		s.dispositions = append(s.dispositions, disposition{desired: t.Desired()})
	}
	return s
}

// live reports whether a task is meant to run after what has been decided.
func (s *slot) live(i int) bool {
	return !s.dispositions[i].deleted && s.dispositions[i].desired <= musterv1.TaskState_COMPLETE
}

// busy reports whether any task is meant to run after what has been decided.
func (s *slot) busy() bool {
	for i := range s.tasks {
		if s.live(i) {
			return true
		}
	}
	return s.made != nil
}

// raise raises a task's desired state; it is never lowered.
func (s *slot) raise(i int, to musterv1.TaskState, why Reason) {
	if f := &s.dispositions[i]; f.desired < to {
		f.desired, f.reason = to, why
	}
}

// end ends a task and keeps its record.
func (s *slot) end(i int, why Reason) { s.raise(i, musterv1.TaskState_SHUTDOWN, why) }

// drop ends all tasks of the slot for good.
func (s *slot) drop(why Reason) {
	for i := range s.tasks {
		s.raise(i, musterv1.TaskState_REMOVE, why)
	}
	s.reap()
}

// giveUp ends a task because of its node, if that does not keep its tasks, and
// reports whether it did.
func (s *slot) giveUp(i int) bool {
	c := s.d.condition(s.tasks[i])
	if c.Keeps() {
		return false
	}
	s.blame(s.tasks[i])
	s.end(i, c.reason())
	return true
}

// blame notes that the decision rests on a task's node being lost or unfit.
func (s *slot) blame(t *state.Task) {
	switch {
	case !s.d.condition(t).Keeps():
		if !slices.Contains(s.lost, t.NodeID) {
			s.lost = append(s.lost, t.NodeID)
		}
	case s.misplaced(t) && s.target.matches(t.NodeID):
		s.crowded = append(s.crowded, t.NodeID)
	case s.misplaced(t):
		s.unfit = append(s.unfit, t.NodeID)
	}
}

// newest returns the slot's newest task that is not to be removed, or -1.
func (s *slot) newest() int {
	newest := -1
	for i, t := range s.tasks {
		if t.Desired() >= musterv1.TaskState_REMOVE {
			continue
		}
		if newest < 0 || t.Record.CreatedAt > s.tasks[newest].Record.CreatedAt {
			newest = i
		}
	}
	return newest
}

// create makes the slot's new task from what the caller has filled in of it,
// when the others are decided on. It is told to run at once unless it must
// wait.
func (s *slot) create(t *recordv1.Task, why Reason) {
	d := s.d
	t.Slot, t.NodeId = s.number, s.node
	t.SpecDigest, t.SpecVersion = s.target.digest, s.target.version
	t.EndpointDigest = s.target.endpoint
	t.Reason = string(why)
	if s.begins {
		t.Turn = &recordv1.Turn{Rollout: d.rollout.GetNumber()}
	}
	if d.asked(why) {
		t.AskedAt = d.w.Service.UpdatedAt
	}
	// Tasks of a slot are told apart by when they were made, whatever the clock
	// says.
	t.CreatedAt = d.now
	for _, old := range s.tasks {
		t.CreatedAt = max(t.CreatedAt, old.Record.CreatedAt+1)
	}
	t.DesiredAt = d.now
	t.DesiredState = musterv1.TaskState_RUNNING
	if d.dependent(s.target, why) && d.waits() {
		t.DesiredState = musterv1.TaskState_NEW
	} else if until := s.waitsUntil(t); until > 0 {
		t.DesiredState = musterv1.TaskState_READY
		d.wake(until)
	}
	s.made, s.madeReason = t, why
}

// start lets a task that waits run, if it need not wait any longer.
func (s *slot) start(i int) {
	if unstarted(s.tasks[i]) && (s.target != s.d.target && underWay(s.d.rollout) || s.d.waits()) {
		// Of a former spec, it is replaced before it ever runs.
		return
	}
	if until := s.waitsUntil(s.tasks[i].Record); until > 0 {
		s.d.wake(until)
		return
	}
	s.raise(i, musterv1.TaskState_RUNNING, ReasonMayStart)
}

// unstarted reports whether a task waits for other services.
func unstarted(t *state.Task) bool { return t.Desired() < musterv1.TaskState_READY }

// waitsUntil says until when a task has to wait if nothing happens, or 0 if it
// may run now: until its delay is over, and until the tasks that were ended
// before it have stopped, or were given time enough.
func (s *slot) waitsUntil(t *recordv1.Task) int64 {
	until := s.target.policy.waits(t, s.d.now)
	for i := range s.tasks {
		if s.live(i) || s.dispositions[i].deleted || s.stopped(i) {
			continue
		}
		if over := s.patience(i); over > s.d.now {
			until = max(until, over)
		}
	}
	return until
}

// close ends work on the slot and adds what changes to the plan.
func (s *slot) close() {
	s.prune()
	var changes []Change
	filled := s.made != nil
	for i, t := range s.tasks {
		f := s.dispositions[i]
		if t.Live() {
			filled = false
		}
		switch {
		case f.deleted:
			changes = append(changes, Change{Key: t.Key, Reason: f.reason})
		case f.desired > t.Desired():
			r := proto.CloneOf(t.Record)
			r.DesiredState, r.DesiredAt = f.desired, s.d.now
			if !s.live(i) {
				r.Reason = string(f.reason)
			}
			if f.finished {
				r.Finished, r.Reason = true, state.FinishedReason
			}
			changes = append(changes, Change{Key: t.Key, Record: r, Reason: f.reason})
		}
	}
	if s.made != nil {
		key := state.TaskKey(s.d.w.ServiceID, s.number, s.node, s.d.w.NewID())
		changes = append(changes, Change{Key: key, Record: s.made, Reason: s.madeReason})
	}
	if len(changes) == 0 {
		return
	}
	key := state.TaskKey(s.d.w.ServiceID, s.number, s.node, "")
	p := Slot{Prefix: key, Changes: changes, Fills: filled, Begins: s.begins, Vacates: s.vacates, Lost: s.lost, Unfit: s.unfit, Crowded: s.crowded}
	if len(s.unfit) > 0 {
		p.Constraints = s.target.spec.GetPlacement().GetConstraints()
	}
	for _, t := range s.tasks {
		p.Seen = append(p.Seen, Seen{Key: t.Key, Version: t.Version})
	}
	slices.SortFunc(p.Seen, func(a, b Seen) int { return strings.Compare(a.Key, b.Key) })
	s.d.plan.Slots = append(s.d.plan.Slots, p)
}
