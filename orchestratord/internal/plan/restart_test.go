package plan_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func restart(p *musterv1.RestartPolicy) func(*musterv1.TaskSpec) {
	return func(s *musterv1.TaskSpec) { s.Restart = p }
}

func seconds(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }

// end lets the slot's task end, and returns what follows it.
func (w *world) end(t *testing.T, s musterv1.TaskState) {
	t.Helper()
	w.report(w.one(t, 1), s)
	w.reconcile(t)
}

func single(t *testing.T, p *musterv1.RestartPolicy) *world {
	w := newWorld()
	w.spec(null(1, restart(p)))
	w.replicas(1)
	w.converge(t)
	return w
}

func TestRestartConditions(t *testing.T) {
	const (
		none      = musterv1.RestartPolicy_NONE
		onFailure = musterv1.RestartPolicy_ON_FAILURE
		any       = musterv1.RestartPolicy_ANY
	)
	tests := []struct {
		name      string
		condition musterv1.RestartPolicy_Condition
		end       musterv1.TaskState
		restarted bool
	}{
		{"default, success", 0, complete, true},
		{"any, success", any, complete, true},
		{"any, failure", any, failed, true},
		{"any, rejected", any, rejected, true},
		{"on failure, success", onFailure, complete, false},
		{"on failure, failure", onFailure, failed, true},
		{"on failure, rejected", onFailure, rejected, true},
		{"none, success", none, complete, false},
		{"none, failure", none, failed, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := single(t, &musterv1.RestartPolicy{Condition: tt.condition})
			old := w.one(t, 1)
			w.end(t, tt.end)
			if tt.end == rejected {
				w.converge(t) // it is replaced after its delay
			}
			if got := w.tasks[old.Key].Desired(); got != shutdown {
				t.Errorf("old task desired %v, want SHUTDOWN", got)
			}
			if got := len(w.live(1)) == 1; got != tt.restarted {
				t.Fatalf("restarted: %t, want %t", got, tt.restarted)
			}
			w.converge(t)
			if !tt.restarted {
				return
			}
			next := w.one(t, 1)
			if next.Record.Restarts != 1 || next.State() != running {
				t.Errorf("replacement is %v, %v", next.Record, next.State())
			}
		})
	}
}

func TestRestartDelay(t *testing.T) {
	w := single(t, nil)
	ended := w.now
	w.report(w.one(t, 1), failed)
	w.now = w.now.Add(2 * time.Second) // until the next look
	p := w.reconcile(t)
	next := w.one(t, 1)
	if next.Desired() != ready {
		t.Errorf("replacement desired %v, want READY", next.Desired())
	}
	if want := ended.Add(5 * time.Second); next.Record.StartAfter != want.UnixMilli() || !p.Next.Equal(want) {
		t.Errorf("may start at %v, next look at %v, want %v", time.UnixMilli(next.Record.StartAfter), p.Next, want)
	}
	w.now = p.Next
	w.reconcile(t)
	if got := w.one(t, 1); got.Key != next.Key || got.Desired() != running {
		t.Errorf("desired %v after the delay, want RUNNING", got.Desired())
	}
}

// Clocks of managers differ: a delay is never longer than it should be.
func TestRestartDelayTrustsNoClock(t *testing.T) {
	w := single(t, nil)
	w.now = w.now.Add(time.Hour)
	w.report(w.one(t, 1), failed)
	w.now = w.now.Add(-time.Hour)
	if p := w.reconcile(t); !p.Next.Equal(w.now.Add(5 * time.Second)) {
		t.Errorf("next look in %v, want 5s", p.Next.Sub(w.now))
	}
}

// failAfter lets the slot's task fail once it has run for so long, and returns the delay
// before the next may run.
func (w *world) failAfter(t *testing.T, ran time.Duration) time.Duration {
	t.Helper()
	w.converge(t)
	w.now = w.now.Add(ran)
	w.end(t, failed)
	return time.UnixMilli(w.one(t, 1).Record.StartAfter).Sub(w.now)
}

func TestEarlyFailuresInARowBackOff(t *testing.T) {
	tests := map[string]struct {
		policy *musterv1.RestartPolicy
		ran    time.Duration
		want   []int
	}{
		"default":                   {nil, time.Second, []int{5, 5, 5, 10, 20, 40, 60, 60}},
		"no delay":                  {&musterv1.RestartPolicy{Delay: seconds(0)}, time.Second, []int{0, 0, 0, 2, 4, 8, 16, 32, 60, 60}},
		"long delay":                {&musterv1.RestartPolicy{Delay: seconds(300)}, time.Second, []int{300, 300, 300, 300, 300}},
		"tasks that ran for longer": {nil, 10 * time.Second, []int{5, 5, 5, 5, 5, 5}},
		"bounded attempts":          {&musterv1.RestartPolicy{MaxAttempts: 9, Window: seconds(600)}, time.Second, []int{5, 5, 5, 5, 5, 5}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := single(t, tt.policy)
			for i, want := range tt.want {
				if got := w.failAfter(t, tt.ran); got != time.Duration(want)*time.Second {
					t.Fatalf("delay after failure %d is %v, want %ds", i+1, got, want)
				}
			}
		})
	}
}

// TestLongRunEndsBackOff: a task that has run for a while forgives the failures before.
func TestLongRunEndsBackOff(t *testing.T) {
	w := single(t, nil)
	for range 6 {
		w.failAfter(t, time.Second)
	}
	if got := w.failAfter(t, time.Minute); got != 5*time.Second {
		t.Errorf("delay after a run of a minute is %v, want 5s", got)
	}
	if got := w.failAfter(t, time.Second); got != 5*time.Second {
		t.Errorf("delay after the failure that follows is %v, want 5s", got)
	}
}

func TestNoDelayAtAll(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{Delay: seconds(0)})
	w.end(t, failed)
	if got := w.one(t, 1); got.Desired() != running || got.State() != pending {
		t.Errorf("replacement desired %v, want RUNNING at once", got.Desired())
	}
}

// TestRejectedTaskIsReplacedAfterItsDelay has a task that cannot be prepared while it
// waits for its own delay: it is replaced once the delay after its end is over, by a
// task that need not wait.
func TestRejectedTaskIsReplacedAfterItsDelay(t *testing.T) {
	w := single(t, nil)
	w.end(t, failed)
	bad := w.one(t, 1)
	w.assign(bad, "a")
	w.now = w.now.Add(time.Second)
	w.report(bad, rejected)
	ended := w.now
	for _, after := range []time.Duration{0, 4 * time.Second} {
		w.now = ended.Add(after)
		p := w.reconcile(t)
		if got := w.one(t, 1); got.Key != bad.Key {
			t.Fatalf("replaced %v after its end", after)
		}
		if !p.Next.Equal(ended.Add(5 * time.Second)) {
			t.Errorf("next look %v after the end, want 5s", p.Next.Sub(ended))
		}
	}
	w.now = ended.Add(5 * time.Second)
	w.reconcile(t)
	if got := w.one(t, 1); got.Key == bad.Key || got.Record.Restarts != 2 || got.Desired() != running || got.Record.StartAfter != w.now.UnixMilli() {
		t.Errorf("after the delay: %v", got.Record)
	}
}

// TestRejectedTasksAreTriedOncePerDelay counts the attempts of a task that is rejected
// as soon as it is assigned.
func TestRejectedTasksAreTriedOncePerDelay(t *testing.T) {
	for name, tt := range map[string]struct {
		policy *musterv1.RestartPolicy
		span   time.Duration
		skew   time.Duration
		want   int
	}{
		// Bounded attempts have no growing delay.
		"each delay":                  {&musterv1.RestartPolicy{Delay: seconds(5), MaxAttempts: 100, Window: seconds(600)}, time.Minute, 0, 13},
		"growing delay":               {nil, time.Minute, 0, 6}, // after 0, 5, 10, 15, 25, 45 seconds
		"dispatcher's clock is ahead": {&musterv1.RestartPolicy{Delay: seconds(5), MaxAttempts: 100, Window: seconds(600)}, time.Minute, time.Second, 11},
		// When such a task ended is not known: the delay is that before the next may run.
		"dispatcher's clock is far ahead": {&musterv1.RestartPolicy{Delay: seconds(5), MaxAttempts: 100, Window: seconds(600)}, time.Minute, time.Hour, 14},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.spec(null(1, restart(tt.policy)))
			w.replicas(1)
			attempts := 0
			for end := w.now.Add(tt.span); ; {
				p := w.reconcile(t)
				if task := w.one(t, 1); !task.Terminal() && task.NodeID == "" {
					attempts++
					w.assign(task, "a")
					w.now = w.now.Add(tt.skew)
					w.report(w.tasks[task.Key], rejected)
					w.now = w.now.Add(-tt.skew)
					continue
				}
				if p.Next.IsZero() || p.Next.After(end) {
					break
				}
				w.now = p.Next
			}
			if attempts != tt.want {
				t.Errorf("%d attempts in %v, want %d", attempts, tt.span, tt.want)
			}
		})
	}
}

// TestRejectedTaskThatMayNotBeReplacedEndsAtOnce has no attempt left: there is nothing
// to wait for.
func TestRejectedTaskThatMayNotBeReplacedEndsAtOnce(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
	w.report(w.one(t, 1), rejected)
	if p := w.reconcile(t); len(w.live(1)) != 0 || !p.Next.IsZero() {
		t.Errorf("next look at %v:%s", p.Next, w.print())
	}
}

func TestMaxAttempts(t *testing.T) {
	p := &musterv1.RestartPolicy{MaxAttempts: 2, Delay: seconds(1)}
	w := single(t, p)
	for range 2 {
		w.end(t, failed)
		w.converge(t)
		w.one(t, 1)
	}
	w.end(t, failed)
	if n := len(w.live(1)); n != 0 {
		t.Fatalf("%d live tasks after the attempts are used up", n)
	}
	w.converge(t)

	// The slot counts as a replica: nothing but a change of the spec fills it.
	w.replicas(2)
	w.converge(t)
	if len(w.live(1)) != 0 || len(w.live(2)) != 1 {
		t.Errorf("scaling up fills a finished slot:%s", w.print())
	}
	w.replicas(1)
	w.converge(t)
	if len(w.live(1)) != 0 || len(w.live(2)) != 1 {
		t.Errorf("scaling down does not prefer a finished slot:%s", w.print())
	}
}

func TestUpdateForgetsAttempts(t *testing.T) {
	p := &musterv1.RestartPolicy{MaxAttempts: 1, Delay: seconds(0)}
	w := single(t, p)
	first := w.service.TaskDigest
	w.end(t, failed)
	w.converge(t)
	w.end(t, failed)
	w.converge(t)
	if len(w.live(1)) != 0 {
		t.Fatal("attempts are not used up")
	}
	w.spec(null(2, restart(p)))
	w.converge(t)
	if got := w.one(t, 1); got.Record.Restarts != 0 || got.State() != running {
		t.Errorf("after the update: %v", got.Record)
	}
	// And back: what the first spec's tasks lived through is past.
	w.spec(null(1, restart(p)))
	if string(w.service.TaskDigest) != string(first) {
		t.Fatal("equal specs have different digests")
	}
	w.converge(t)
	w.end(t, failed)
	w.converge(t)
	if got := w.one(t, 1); got.Record.Restarts != 1 {
		t.Errorf("after the way back: %v", got.Record)
	}
}

// A slot that has finished is not run again by an update that was not seen.
func TestSpecChangedAndChangedBackIsNoChange(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
	w.end(t, complete)
	w.converge(t)
	w.service.SpecVersion += 2
	w.converge(t)
	if len(w.live(1)) != 0 {
		t.Errorf("run again:%s", w.print())
	}
}

func TestMaxAttemptsWithinWindow(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{MaxAttempts: 2, Window: seconds(60), Delay: seconds(0)})
	fail := func(after time.Duration) bool {
		w.now = w.now.Add(after)
		w.end(t, failed)
		again := len(w.live(1)) == 1
		w.converge(t)
		return again
	}
	for i, after := range []time.Duration{0, 50 * time.Second, 20 * time.Second, 45 * time.Second} {
		if !fail(after) {
			t.Fatalf("failure %d is not followed by a task", i)
		}
	}
	if got := w.one(t, 1).Record; len(got.RestartedAt) > 2 {
		t.Errorf("more history than needed: %v", got.RestartedAt)
	}
	if fail(5 * time.Second) {
		t.Error("a third restart within a minute")
	}
	// Time alone does not bring it back.
	w.now = w.now.Add(time.Hour)
	if p := w.reconcile(t); !p.Empty() {
		t.Errorf("plan%s", describe(p))
	}
}

// What a node does is no fault of the task's.
func TestLostNodeCountsAsNoAttempt(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{MaxAttempts: 1, Delay: seconds(0)})
	w.end(t, failed)
	w.converge(t)
	for _, c := range []plan.Condition{plan.Down, plan.Drained} {
		w.nodes[w.one(t, 1).NodeID] = c
		w.converge(t)
		if got := w.one(t, 1); got.Record.Restarts != 1 || got.State() != running {
			t.Errorf("after the move: %v, %v", got.Record, got.State())
		}
	}
	w.end(t, failed)
	if len(w.live(1)) != 0 {
		t.Error("the attempts before the move are forgotten")
	}
}

func TestRunOnceIsNotRunAgainElsewhere(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
	w.nodes[w.one(t, 1).NodeID] = plan.Down
	w.converge(t)
	if len(w.live(1)) != 0 {
		t.Errorf("run again:%s", w.print())
	}
}

func TestEndedOnDrainedNodeHasNoDelay(t *testing.T) {
	w := single(t, nil)
	w.nodes[w.one(t, 1).NodeID] = plan.Drained
	w.end(t, failed)
	if got := w.one(t, 1); got.Desired() != running {
		t.Errorf("replacement desired %v, want RUNNING", got.Desired())
	}
}

func TestDelayOutlivesTheNode(t *testing.T) {
	w := single(t, nil)
	w.end(t, failed)
	w.settle() // the replacement is being prepared
	waiting := w.one(t, 1)
	w.nodes[waiting.NodeID] = plan.Down
	w.reconcile(t)
	if got := w.one(t, 1); got.Key == waiting.Key || got.Record.StartAfter != waiting.Record.StartAfter || got.Desired() != ready {
		t.Errorf("after the node was lost: %v", got.Record)
	}
}

func TestFinishedSurvivesLossOfItsStatus(t *testing.T) {
	w := single(t, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ON_FAILURE})
	w.end(t, complete)
	for _, task := range w.sorted() {
		c := *task
		c.NodeID, c.Assignment, c.Status = "", nil, nil
		w.tasks[c.Key] = &c
	}
	w.history = 0
	w.converge(t)
	if len(w.live(1)) != 0 || len(w.tasks) != 1 {
		t.Errorf("a finished slot was forgotten:%s", w.print())
	}
}

// A wall clock that jumps while a task waits for its delay makes it start early at
// worst, and takes the delay from none that fails later.
func TestDelaysOnAClockThatJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{
		"back by hours": -3 * time.Hour, "back a little": -2 * time.Second, "ahead by hours": 3 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			w := single(t, &musterv1.RestartPolicy{Delay: seconds(5), MaxAttempts: 3, Window: seconds(60)})
			w.now = w.now.Add(24 * time.Hour)
			w.end(t, failed)
			if got := w.one(t, 1); got.Desired() != ready {
				t.Fatalf("the replacement is desired %s at once", got.Desired())
			}
			w.now = w.now.Add(jump)
			began := w.now
			for w.one(t, 1).Desired() == ready {
				p := w.reconcile(t)
				if w.one(t, 1).Desired() != ready {
					break
				}
				if p.Next.Sub(began) > 11*time.Second {
					t.Fatalf("next look at %v, %v after the jump", p.Next, p.Next.Sub(began))
				}
				w.now = p.Next
			}
			// It runs, and fails again: the delay is that of the policy.
			w.converge(t)
			ended := w.now
			w.end(t, failed)
			p := w.reconcile(t)
			if wait := p.Next.Sub(ended); w.one(t, 1).Desired() != ready || wait > 6*time.Second || wait < time.Second {
				t.Errorf("the task after the jump is desired %s, next look after %v", w.one(t, 1).Desired(), wait)
			}
		})
	}
}
