package plan

import (
	"slices"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// updateStep is what has become of a slot's turn in an update, as far as it is known
// now.
type updateStep struct {
	// settledAt is when the task that was made in the turn had begun to run, or had
	// ended, by a manager's clock; 0: neither yet.
	settledAt int64
	// failed says that it failed before it ran, or within the time in which that
	// counts.
	failed bool
}

// InTurn reports whether a task may be the one for which its slot's turn lasts, by
// what its record tells.
func InTurn(t *recordv1.Task) bool {
	return t.Turn != nil && t.Turn.SettledAt == 0 && t.DesiredState <= musterv1.TaskState_COMPLETE
}

// updateStepOf reads a task that was created in a turn, or that has taken it over.
func (d *decider) updateStepOf(t *state.Task) updateStep {
	if r := t.Record.Turn; r.GetSettledAt() != 0 || r.GetFailed() {
		return updateStep{settledAt: r.SettledAt, failed: r.Failed}
	}
	ran := timeOf(t.Status, musterv1.TaskState_RUNNING)
	switch s := t.State(); {
	case s == musterv1.TaskState_RUNNING:
		return updateStep{settledAt: d.managed(t, ran)}
	case s == musterv1.TaskState_ORPHANED, s < musterv1.TaskState_RUNNING:
		return updateStep{}
	default:
		u := updateStep{settledAt: d.managed(t, t.Status.GetAt())}
		if ran != 0 {
			u.settledAt = d.managed(t, ran)
		}
		// Both times are by the worker's clock.
		u.failed = d.fails(s) && (ran == 0 || t.Status.GetAt()-ran <= d.config.monitor)
		return u
	}
}

// fails reports whether a task that ended in a state has failed. One that ended
// well has, too, if it should have run on.
func (d *decider) fails(s musterv1.TaskState) bool {
	switch s {
	case musterv1.TaskState_FAILED, musterv1.TaskState_REJECTED:
		return true
	case musterv1.TaskState_COMPLETE:
		return d.target.policy.condition == musterv1.RestartPolicy_ANY
	default:
		return false
	}
}

// managed turns a time by the clock of a task's worker into one by a manager's: as
// long before the manager heard of the task's state as it was before that state
// was reached.
func (d *decider) managed(t *state.Task, at int64) int64 {
	heard := endedAt(t)
	if at != 0 {
		heard -= max(0, t.Status.GetAt()-at)
	}
	return min(max(heard, t.Record.CreatedAt), d.now)
}

// timeOf is when a task reached a state, by its worker's clock; 0: never.
func timeOf(s *recordv1.Status, reached musterv1.TaskState) int64 {
	for t := range state.Times(s) {
		if t.State == reached {
			return t.At
		}
	}
	if s.GetState() == reached {
		return s.GetAt()
	}
	return 0
}

// handOn returns what a task takes over of the turn of the one that it follows.
func (d *decider) handOn(t *state.Task) *recordv1.Turn {
	if t.Record.Turn == nil {
		return nil
	}
	r, u := proto.CloneOf(t.Record.Turn), d.updateStepOf(t)
	r.SettledAt, r.Failed = u.settledAt, u.failed
	return r
}

// slotState is where a wanted slot stands in the update, before anything is decided
// on it.
type slotState struct {
	number uint64
	node   string
	tasks  []*state.Task
	// frozen slots get no new task.
	frozen bool

	// due says that a task of another spec is there, none of the target's, and that
	// the slot is to have its turn.
	due bool
	// begins says that it has its turn now.
	begins bool
	// updatedTask is the task that the slot's last turn created, or one that has taken
	// it over; nil if there is none.
	updatedTask *state.Task
	updateStep  updateStep
	// inFlight says that the turn has begun and is not settled yet.
	inFlight bool
	// running says that a task runs in the slot, and placed that one has a node.
	running, placed bool
}

// examine finds out where a slot stands.
func (d *decider) examine(e *slotState) {
	current, outdated := false, false
	updatedTask := func(t *state.Task, over *state.Task) *state.Task {
		if t.Record.Turn != nil && (over == nil || t.Record.CreatedAt > over.Record.CreatedAt) {
			return t
		}
		return over
	}
	var former *state.Task
	for _, t := range e.tasks {
		if !t.Live() {
			continue
		}
		e.running = e.running || t.State() == musterv1.TaskState_RUNNING
		e.placed = e.placed || t.NodeID != "" && !t.Terminal()
		if d.target.clean(t) {
			current, e.updatedTask = true, updatedTask(t, e.updatedTask)
		} else {
			outdated, former = true, updatedTask(t, former)
		}
	}
	if done := d.done(e.tasks); done != nil {
		if d.target.clean(done) {
			current, e.updatedTask = true, updatedTask(done, e.updatedTask)
		} else {
			outdated, former = true, updatedTask(done, former)
		}
	}
	if !current {
		// One of a former spec beside one that is what it should be is at its end.
		e.updatedTask = former
	}
	if e.frozen && e.updatedTask != nil && e.updatedTask.Live() && e.updatedTask.Terminal() {
		// It is put to rest, and forgotten in the update, see freeze.
		e.updatedTask = nil
	}
	e.due = outdated && !current && !e.frozen
	if e.updatedTask != nil {
		e.updateStep = d.updateStepOf(e.updatedTask)
		// What a paused node has may never come to anything, and what is lost and not
		// replaced will not: the update does not wait for it.
		e.inFlight = !e.frozen && e.updatedTask.Live() && e.updateStep.settledAt == 0 && !e.updateStep.failed && !d.ends(e.updatedTask)
	}
}

// ends reports whether a task is lost or misplaced and no other follows it.
func (d *decider) ends(t *state.Task) bool {
	g := d.target
	return g.clean(t) && g.policy.condition == musterv1.RestartPolicy_NONE && !refused(t) && (d.lost(t) || d.misplaced(g, t))
}

// progress is where all slots of a service stand in the update.
type progress struct {
	due, inFlight, failed uint64
	// blame is a task of a slot that has failed.
	blame *state.Task
	// watched says that the time in which a failure counts is not over for all.
	watched bool
	// resting counts slots that are through, after which others have to wait for a
	// while.
	resting uint64
}

// progress examines all wanted slots.
func (d *decider) progress(wantedSlots []*slotState) progress {
	var v progress
	for _, e := range wantedSlots {
		d.examine(e)
		if e.due {
			v.due++
		}
		switch {
		case e.updatedTask == nil:
		case e.inFlight:
			v.inFlight++
		case e.updatedTask.Record.Turn.Rollout == d.rollout.GetNumber():
			if e.updateStep.failed {
				v.failed++
				v.blame = e.updatedTask
			} else if end := e.updateStep.settledAt + d.config.monitor; end > d.now && underWay(d.rollout) && d.config.watches() {
				v.watched = true
				d.wake(end)
			}
			if end := e.updateStep.settledAt + d.config.delay; end > d.now {
				v.resting++
				if underWay(d.rollout) {
					d.wake(end)
				}
			}
		}
	}
	return v
}

// startSteps chooses the slots whose turn it is: at most the update's parallelism
// are under way at once. Those come first that run nothing, and of
// these those that a former update left half done, so that as few as possible do
// without a task. What has a node comes before what waits for one: its room may be
// what the others wait for, and their turn would never end.
func (d *decider) startSteps(wantedSlots []*slotState, v progress) {
	if v.due == 0 || !underWay(d.rollout) {
		return
	}
	due := make([]*slotState, 0, v.due)
	taken := v.resting
	// What runs stays until what the service depends on is there. A slot in which
	// nothing was started yet loses nothing.
	waits := !d.rollout.GetRolledBack() && d.waits()
	for _, e := range wantedSlots {
		if e.due && (!waits || e.unstarted()) {
			due = append(due, e)
		} else if e.inFlight {
			taken++
		}
	}
	slices.SortStableFunc(due, func(a, b *slotState) int { return a.urgency() - b.urgency() })
	if p := d.config.parallelism; p > 0 {
		due = due[:min(uint64(len(due)), p-min(p, taken))]
	}
	for _, e := range due {
		e.begins = true
	}
}

// unstarted reports whether nothing runs in the slot but tasks that wait for other
// services. One whose task has ended for good stays so: that no further task follows is
// no reason to begin with the new spec before the others are there.
func (e *slotState) unstarted() bool {
	return !slices.ContainsFunc(e.tasks, func(t *state.Task) bool {
		return t.Live() && !unstarted(t) || state.Finished(t.Record)
	})
}

func (e *slotState) urgency() int {
	switch {
	case e.inFlight:
		return 0
	case !e.running && e.placed:
		return 1
	case !e.running:
		return 2
	default:
		return 3
	}
}

// held returns what a slot is kept by whose turn has not come: what it is made of.
func (d *decider) held(e *slotState) *target {
	var of *state.Task
	for _, t := range e.tasks {
		switch {
		case !t.Live():
		case of == nil, of.Terminal() && !t.Terminal():
			of = t
		case of.Terminal() == t.Terminal() && further(t, of):
			of = t
		}
	}
	if of == nil {
		if of = d.done(e.tasks); of == nil {
			return nil
		}
	}
	key := string(of.Record.SpecDigest) + string(of.Record.EndpointDigest)
	g, known := d.former[key]
	if !known {
		// A spec that is not to be found any more, or makes no sense, gives a slot
		// nothing to be kept by: nil.
		g, _ = newTarget(d.w, of.Record.SpecDigest, of.Record.EndpointDigest, of.Record.SpecVersion)
		if d.former == nil {
			d.former = map[string]*target{}
		}
		d.former[key] = g
	}
	return g
}
