package lifecycle_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// However the clock jumps between them, the states of a task have times that do
// not fall, also in a worker that has forgotten how much time really passed.
func TestTimesDoNotFall(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		var s lifecycle.Status
		for state := musterv1.TaskState_ACCEPTED; state <= musterv1.TaskState_COMPLETE; state++ {
			jump := time.Duration(rapid.Int64Range(-int64(48*time.Hour), int64(48*time.Hour)).Draw(r, "jump"))
			before := s.At
			now := time.Now().Add(jump)
			s.Move(state, now, "")
			if s.At.Before(before) || s.At.Before(now.Round(0)) || (!now.Round(0).Before(before) && !s.At.Equal(now)) {
				r.Errorf("%s at %s follows what was at %s; the clock said %s", state, s.At, before, now)
			}
			if rapid.Bool().Draw(r, "restart") {
				s = lifecycle.FromReport(s.Report("t"))
			}
		}
		for i, at := range s.Times {
			if i > 0 && at.At.Before(s.Times[i-1].At) {
				r.Errorf("times fall: %v", s.Times)
			}
		}
	})
}
