package plan

import (
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// stopWait is how long a new task waits for the one that it replaces to stop.
// After it the old one is taken to hang, and the service comes first.
const stopWait = time.Minute

// assignWait is how long a task that was ended without a node may turn out to
// have one. Assignments are another daemon's, and are seen a little later than
// they are made: it may have been given a node a moment before, and have
// started there.
const assignWait = time.Second

// stopped reports whether nothing runs of a task that was ended, as far as
// anybody will know.
func (s *slot) stopped(i int) bool {
	t := s.tasks[i]
	switch {
	case t.Terminal() || s.d.condition(t).unreachable():
		return true
	case t.NodeID != "":
		return false
	}
	over := s.patience(i)
	if over > s.d.now {
		s.d.wake(over)
	}
	return over <= s.d.now
}

// patience says until when a task that was ended is waited for.
func (s *slot) patience(i int) int64 {
	t, since := s.tasks[i], s.d.now
	if s.dispositions[i].desired == t.Desired() {
		since = t.Record.DesiredAt
	}
	if t.NodeID == "" {
		return since + assignWait.Milliseconds()
	}
	return since + stopWait.Milliseconds()
}

// reap forgets tasks that must be removed and have stopped.
func (s *slot) reap() {
	for i, t := range s.tasks {
		f := &s.dispositions[i]
		if f.desired < musterv1.TaskState_REMOVE || f.deleted || !s.stopped(i) {
			continue
		}
		f.deleted = true
		if f.reason == "" {
			f.reason = Reason(t.Record.Reason)
		}
	}
}
