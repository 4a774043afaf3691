package plan

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// keepSlot brings a slot that is wanted to one running task, of the service's spec
// if that is there already or has its turn, and else of what was there before.
func (s *slot) keepSlot(e *slotState, empty Reason) {
	s.begins = e.begins
	if e.due && !e.begins {
		if former := s.d.held(e); former != nil {
			s.target = former
		} else {
			s.reap()
			return
		}
	}
	s.keep(e.frozen, empty)
}

// keep brings a slot that is wanted to one running task of its target. A frozen
// slot (its node is paused) gets no new task and is not updated.
func (s *slot) keep(frozen bool, empty Reason) {
	d := s.d
	s.reap()
	best, ended, lost, outdated := -1, -1, -1, false
	for i, t := range s.tasks {
		switch {
		case !t.Live():
		case !s.target.clean(t):
			outdated = true
			// What does not run serves no client, and may hold the port that its
			// successor needs: it is not waited for.
			useful := frozen || d.config.startFirst && t.State() == musterv1.TaskState_RUNNING
			stays := useful && !t.Terminal() && d.condition(t).Keeps()
			if stays && (s.oldTask < 0 || further(t, s.tasks[s.oldTask])) {
				s.oldTask = i
			}
		case d.lost(t), s.misplaced(t):
			lost = s.later(lost, i)
		case t.Terminal():
			ended = s.later(ended, i)
		case best < 0 || further(t, s.tasks[best]):
			best = i
		}
	}
	switch {
	case best >= 0:
		s.settle(best)
	case frozen:
		s.freeze()
	case ended >= 0:
		s.restart(ended)
	case lost >= 0:
		s.move(lost)
	case s.finished():
		s.rest()
	case outdated:
		s.retire(-1)
		s.create(&recordv1.Task{}, ReasonSpecChanged)
	default:
		if d.done(s.tasks) != nil {
			// The slot had finished, by a former spec.
			empty = ReasonSpecChanged
		}
		s.create(&recordv1.Task{}, empty)
	}
}

// settle ends whatever the slot has beside its one task, and lets that run.
func (s *slot) settle(best int) {
	d := s.d
	running := s.tasks[best].State() == musterv1.TaskState_RUNNING
	for i, t := range s.tasks {
		if i == best || !t.Live() {
			continue
		}
		switch {
		case t.Terminal():
			s.end(i, reasonOfEnd(t))
		case s.giveUp(i):
		case s.target.clean(t):
			s.end(i, ReasonSuperseded)
		case i == s.oldTask && d.config.startFirst && !running:
		default:
			s.end(i, ReasonSpecChanged)
		}
	}
	s.standIn()
	if s.tasks[best].Desired() < musterv1.TaskState_RUNNING {
		s.start(best)
	}
}

// freeze ends what has ended by itself on a paused node, and leaves the rest,
// which is one task at most. That runs at last if it was about to when the node was
// paused: its predecessor is gone.
func (s *slot) freeze() {
	for i, t := range s.tasks {
		switch {
		case !t.Live() || i == s.oldTask:
		case t.Terminal():
			s.end(i, ReasonNodePaused)
		default:
			s.end(i, ReasonSuperseded)
		}
	}
	s.standIn()
}

// retire ends the slot's tasks, but for the one that runs until a new one does,
// and for one that the caller may except.
func (s *slot) retire(except int) {
	for i, t := range s.tasks {
		if !t.Live() || i == except {
			continue
		}
		switch {
		case t.Terminal():
			s.end(i, reasonOfEnd(t))
		case s.giveUp(i):
		case i == s.oldTask:
		default:
			s.end(i, ReasonSpecChanged)
		}
	}
	s.standIn()
}

// standIn lets the task of a former spec run on, or run at last, until a new
// one does.
func (s *slot) standIn() {
	if s.oldTask < 0 || !s.live(s.oldTask) {
		return
	}
	s.d.plan.WatchesRunning = true
	if s.tasks[s.oldTask].Desired() < musterv1.TaskState_RUNNING {
		s.start(s.oldTask)
	}
}

// restart replaces a task that has ended by itself, as far as the restart
// policy goes.
func (s *slot) restart(ended int) {
	d, t := s.d, s.tasks[ended]
	if !s.target.policy.allows(t) {
		s.finish(ended)
		return
	}
	next, keeps := s.target.policy.next(t, d.now), d.condition(t).Keeps()
	// A replacement is prepared as soon as it is created, before its delay is over. One
	// for a task that could not be prepared is therefore created after the delay.
	until := s.target.policy.waits(t.Record, d.now)
	if keeps && t.State() == musterv1.TaskState_REJECTED {
		until = max(until, s.target.policy.over(next, endedAt(t), d.now))
	}
	if until > 0 {
		d.wake(until)
		s.retire(ended)
		return
	}
	if next.StartAfter = d.now; keeps {
		next.StartAfter = s.target.policy.startAfter(t, next, d.now)
	}
	next.Turn = d.handOn(t)
	s.retire(-1)
	s.create(next, reasonOfEnd(t))
}

// move replaces a task that was lost with its node, or must not be there any
// more. That is no fault of the task's: there is no delay, and it counts as no
// attempt.
func (s *slot) move(lost int) {
	d, t := s.d, s.tasks[lost]
	s.blame(t)
	// A task that was refused has never begun.
	if s.target.policy.condition == musterv1.RestartPolicy_NONE && !refused(t) {
		s.finish(lost)
		return
	}
	why := ReasonNodeGone
	if c := d.condition(t); !c.Keeps() {
		why = c.reason()
	} else if s.misplaced(t) {
		switch {
		case refused(t):
			why = ReasonRefused
		case s.target.matches(t.NodeID):
			why = ReasonCrowded
		default:
			why = ReasonConstraints
		}
		s.end(lost, why)
	}
	next := &recordv1.Task{
		StartAfter: t.Record.StartAfter, Restarts: t.Record.Restarts, RestartedAt: t.Record.RestartedAt,
		EarlyFailures: t.Record.EarlyFailures, Turn: d.handOn(t),
	}
	s.retire(-1)
	s.create(next, why)
}

// lost reports whether a task went with its node, and did not end by itself.
func (d *decider) lost(t *state.Task) bool {
	if t.State() == musterv1.TaskState_ORPHANED {
		return true
	}
	return !t.Terminal() && !d.condition(t).Keeps()
}

// misplaced reports whether a task is on a node that does not meet the
// constraints any more, or has no room for it. A paused node keeps what it has.
func (s *slot) misplaced(t *state.Task) bool { return s.d.misplaced(s.target, t) }

func (d *decider) misplaced(g *target, t *state.Task) bool {
	switch {
	case t.NodeID == "" || t.Terminal():
		return false
	case refused(t):
		return d.condition(t).Keeps()
	default:
		return d.condition(t) == Up && (!g.matches(t.NodeID) || !d.w.Cluster.Room(t))
	}
}

// refused reports whether the scheduler has found that the node cannot run the task. One
// that runs nevertheless may stay.
func refused(t *state.Task) bool {
	return t.Assignment.GetRefused() != "" && t.State() < musterv1.TaskState_STARTING
}

// finish ends a task that the restart policy allows none to follow. If it is
// not the newest, the spec was changed and changed back meanwhile, and the slot
// runs again for that.
func (s *slot) finish(last int) {
	if s.newest() != last {
		next := &recordv1.Task{Turn: s.d.handOn(s.tasks[last])}
		s.retire(-1)
		s.create(next, ReasonSpecChanged)
		return
	}
	s.end(last, ReasonNoRestart)
	s.dispositions[last].finished = true
	s.rest()
}

// rest leaves the slot without a running task. If its last task did what it was
// to do, nothing of a former spec has to stand in for it.
func (s *slot) rest() {
	if s.tasks[s.newest()].State() == musterv1.TaskState_COMPLETE {
		s.oldTask = -1
	}
	s.retire(-1)
}

// finished reports whether the slot has finished, by its restart policy and the
// present spec.
func (s *slot) finished() bool {
	t := s.d.done(s.tasks)
	return t != nil && s.target.clean(t)
}

func (s *slot) later(a, b int) int {
	if a < 0 || s.tasks[b].Record.CreatedAt > s.tasks[a].Record.CreatedAt {
		return b
	}
	return a
}

// further reports whether of two tasks the first is the one to keep.
func further(a, b *state.Task) bool {
	if x, y := a.State(), b.State(); x != y {
		return x > y
	}
	return a.Record.CreatedAt > b.Record.CreatedAt
}

func reasonOfEnd(t *state.Task) Reason {
	if t.State() == musterv1.TaskState_COMPLETE {
		return ReasonEnded
	}
	return ReasonFailed
}
