package plan

import (
	"cmp"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// prune forgets the oldest tasks of a slot that has more than the history
// limit.
func (s *slot) prune() {
	if s.target == nil || s.target.limit < 0 {
		return
	}
	count := int64(len(s.tasks))
	if s.made != nil {
		count++
	}
	if count <= s.target.limit {
		return
	}
	var past []int
	for i := range s.tasks {
		switch {
		case s.dispositions[i].deleted || s.dispositions[i].desired >= musterv1.TaskState_REMOVE:
			count--
		case !s.live(i) && s.stopped(i):
			past = append(past, i)
		}
	}
	slices.SortFunc(past, func(a, b int) int {
		return cmp.Compare(s.tasks[a].Record.CreatedAt, s.tasks[b].Record.CreatedAt)
	})
	verdict := s.verdict()
	for _, i := range past {
		if count <= s.target.limit {
			return
		}
		if i == verdict {
			continue
		}
		s.dispositions[i].deleted, s.dispositions[i].reason = true, ReasonHistory
		count--
	}
}

// verdict returns the task that says whether the slot has finished, or -1. It
// stays whatever the limit is: without it the slot would be run again.
func (s *slot) verdict() int {
	n := s.newest()
	switch {
	case n < 0 || s.made != nil:
		return -1
	case !s.busy(), s.dispositions[n].finished, state.Finished(s.tasks[n].Record):
		return n
	default:
		return -1
	}
}
