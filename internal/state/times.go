package state

import (
	"iter"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// StateTime is when a task reached a state, in milliseconds.
type StateTime struct {
	State musterv1.TaskState
	At    int64
}

// Times returns when a task reached each state, sorted by state.
func Times(s *recordv1.Status) iter.Seq[StateTime] {
	return func(yield func(StateTime) bool) {
		for i, reached := range s.GetReached() {
			if i >= len(s.ReachedBefore) || !yield(StateTime{reached, s.At - s.ReachedBefore[i]}) {
				return
			}
		}
	}
}

// SetTimes sets the times of a status whose own time is set.
func SetTimes(s *recordv1.Status, times []StateTime) {
	s.Reached = make([]musterv1.TaskState, len(times))
	s.ReachedBefore = make([]int64, len(times))
	for i, t := range times {
		s.Reached[i], s.ReachedBefore[i] = t.State, s.At-t.At
	}
}
