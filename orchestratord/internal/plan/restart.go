package plan

import (
	"slices"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
)

const (
	// steadyRun is how long a task must have run for its failure not to be an early
	// one.
	steadyRun = 10 * time.Second
	// patientFailures is how many early failures in a row leave the delay as it is.
	patientFailures = state.EarlyFailureLimit
	// leastBackoff and mostBackoff bound the delay when it grows.
	leastBackoff = time.Second
	mostBackoff  = time.Minute
)

// policy is a restart policy with its defaults.
type policy struct {
	condition     musterv1.RestartPolicy_Condition
	delay, window time.Duration
	attempts      uint64 // 0: no limit
}

func policyOf(p *musterv1.RestartPolicy) policy {
	return policy{
		condition: defaults.RestartCondition(p),
		delay:     defaults.RestartDelay(p),
		window:    p.GetWindow().AsDuration(),
		attempts:  p.GetMaxAttempts(),
	}
}

// allows reports whether a task that has ended may be followed by another.
// Attempts are counted from task to task, so those before an update are past.
func (p policy) allows(t *state.Task) bool {
	switch p.condition {
	case musterv1.RestartPolicy_NONE:
		return false
	case musterv1.RestartPolicy_ON_FAILURE:
		if t.State() == musterv1.TaskState_COMPLETE {
			return false
		}
	}
	switch {
	case p.attempts == 0:
		return true
	case p.window == 0:
		return uint64(t.Record.Restarts) < p.attempts
	default:
		return uint64(len(p.within(t.Record.RestartedAt, endedAt(t)))) < p.attempts
	}
}

// within returns the restarts that count at the time of a failure.
func (p policy) within(restarts []int64, failure int64) []int64 {
	from := failure - p.window.Milliseconds()
	return slices.DeleteFunc(slices.Clone(restarts), func(at int64) bool { return at <= from || at > failure })
}

// next begins the record of the task that follows one that has ended.
func (p policy) next(t *state.Task, now int64) *recordv1.Task {
	return &recordv1.Task{
		Restarts: t.Record.Restarts + 1, RestartedAt: p.history(t.Record.RestartedAt, now), EarlyFailures: earlyFailures(t),
	}
}

// earlyFailures counts the failures in a row that end with the task, which has ended.
func earlyFailures(t *state.Task) uint32 {
	if s := t.State(); s != musterv1.TaskState_FAILED && s != musterv1.TaskState_REJECTED {
		return 0
	}
	for reached := range state.Times(t.Status) {
		if reached.State == musterv1.TaskState_RUNNING && t.Status.GetAt()-reached.At >= steadyRun.Milliseconds() {
			return 0
		}
	}
	return t.Record.EarlyFailures + 1
}

// delayOf returns the delay before a task may run. What fails again and again is tried
// less often, unless the policy bounds the attempts: they could no longer be made
// within its window.
func (p policy) delayOf(t *recordv1.Task) time.Duration {
	if t.EarlyFailures <= patientFailures || p.attempts > 0 {
		return p.delay
	}
	delay := max(p.delay, leastBackoff)
	for n := uint32(patientFailures); n < t.EarlyFailures && delay < mostBackoff; n++ {
		delay = min(2*delay, mostBackoff)
	}
	return delay
}

// history adds a restart to those that a window needs to know of.
func (p policy) history(restarts []int64, now int64) []int64 {
	if p.attempts == 0 || p.window == 0 {
		return nil
	}
	from := now - p.window.Milliseconds()
	kept := slices.DeleteFunc(slices.Clone(restarts), func(at int64) bool { return at <= from })
	kept = append(kept, now)
	if n := uint64(len(kept)); n > p.attempts {
		kept = kept[n-p.attempts:]
	}
	return kept
}

// startAfter is when a replacement of a task may run. The delay counts from the end of
// the task that it replaces, so that a late look loses no time; the clock
// of the daemon that noted that end is trusted only so far.
func (p policy) startAfter(t *state.Task, next *recordv1.Task, now int64) int64 {
	delay := p.delayOf(next).Milliseconds()
	return min(max(endedAt(t)+delay, now), now+delay)
}

// clockSlack is how far the clocks of managers may lie apart.
const clockSlack = time.Second

// waits says until when a task waits for its delay, or 0 if the delay is over.
func (p policy) waits(t *recordv1.Task, now int64) int64 {
	return p.ahead(t, t.StartAfter, now)
}

// over says until when the delay of a task lasts that replaces one that ended at a time,
// or 0 if it is over.
func (p policy) over(next *recordv1.Task, ended, now int64) int64 {
	return p.ahead(next, ended+p.delayOf(next).Milliseconds(), now)
}

// ahead returns the end of a task's delay, or 0 if it is not ahead. No delay ends that
// far ahead: a clock was set back since then, and how long the task has waited is not
// known. It must not wait for hours.
func (p policy) ahead(t *recordv1.Task, until, now int64) int64 {
	if until <= now || until > now+2*p.delayOf(t).Milliseconds()+clockSlack.Milliseconds() {
		return 0
	}
	return until
}

// endedAt is when a manager heard of the task's end.
func endedAt(t *state.Task) int64 {
	if at := t.Status.GetAppliedAt(); at != 0 {
		return at
	}
	return t.Status.GetAt()
}
