package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// updated returns a service with tasks that run, and is about to be updated.
func updated(t testing.TB, replicas uint64, u *musterv1.UpdateConfig) *world {
	t.Helper()
	w := newWorld()
	w.spec(null(1, restart(&musterv1.RestartPolicy{Delay: seconds(1)})))
	w.replicas(replicas)
	w.converge(t)
	w.now = w.now.Add(time.Hour)
	w.service.Spec.Update = u
	w.spec(null(2, restart(&musterv1.RestartPolicy{Delay: seconds(1)})))
	return w
}

// fails has every task of a spec that is about to run fail.
func (w *world) fails(version uint64) {
	for _, t := range w.sorted() {
		if t.Live() && !t.Terminal() && t.Record.SpecVersion == version && t.Desired() == running {
			w.assign(t, "a")
			w.report(w.tasks[t.Key], failed)
		}
	}
}

// of counts the slots whose live task is of a version.
func (w *world) of(version uint64) int {
	n := 0
	for _, t := range w.sorted() {
		if t.Live() && t.Record.SpecVersion == version {
			n++
		}
	}
	return n
}

func (w *world) wantRollout(t *testing.T, s musterv1.UpdateStatus_State, message string) {
	t.Helper()
	if w.rollout.GetState() != s || !strings.Contains(w.rollout.GetMessage(), message) {
		t.Fatalf("rollout %v, want %v with %q:%s", w.rollout, s, message, w.print())
	}
}

func TestTurnsDoNotWaitForTheSlowest(t *testing.T) {
	w := updated(t, 5, &musterv1.UpdateConfig{Parallelism: 2, Order: musterv1.UpdateConfig_START_FIRST})
	w.reconcile(t)
	if n := w.of(2); n != 2 {
		t.Fatalf("%d slots have their turn, want 2", n)
	}
	second := w.live(2)[1]
	w.assign(second, "a")
	w.report(second, running)
	w.reconcile(t)
	if len(w.live(1)) != 2 || len(w.live(3)) != 2 || len(w.live(4)) != 1 {
		t.Errorf("the place of slot 2 is not given to slot 3:%s", w.print())
	}
}

// A task that hangs on its node holds what others wait for: the update that is to
// mend it must not wait for these.
func TestTurnsGoToWhatHoldsANodeFirst(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(3)
	w.reconcile(t)
	hangs := w.live(2)[0]
	w.assign(hangs, "a")
	w.report(hangs, musterv1.TaskState_PREPARING)
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1}
	w.spec(null(2))
	w.reconcile(t)
	if w.of(2) != 1 || !slices.ContainsFunc(w.live(2), func(x *state.Task) bool { return x.Record.SpecVersion == 2 }) {
		t.Errorf("slot 2 has no turn, and those that wait for a node have:%s", w.print())
	}
}

func TestDelayHoldsThePlace(t *testing.T) {
	w := updated(t, 2, &musterv1.UpdateConfig{Parallelism: 1, Delay: seconds(10), Monitor: seconds(30)})
	w.reconcile(t)
	w.settle() // the old one stops
	w.reconcile(t)
	w.settle() // the new one runs
	ran := w.now
	p := w.reconcile(t)
	if w.of(2) != 1 || !p.Next.Equal(ran.Add(10*time.Second)) {
		t.Fatalf("next look at %v, want 10 s after %v:%s", p.Next, ran, w.print())
	}
	w.now = p.Next
	w.reconcile(t)
	if w.of(2) != 2 {
		t.Errorf("slot 2 has no turn after the delay:%s", w.print())
	}
}

func TestUpdateEndsWhenTheLastIsNotWatchedAnyMore(t *testing.T) {
	w := updated(t, 3, &musterv1.UpdateConfig{Parallelism: 1, Monitor: seconds(30)})
	began := w.now
	for w.of(2) < 3 || w.inFlight() > 0 {
		w.reconcile(t)
		w.settle()
	}
	if w.now != began {
		t.Fatalf("the monitor held the turns up for %v", w.now.Sub(began))
	}
	p := w.reconcile(t)
	w.wantRollout(t, musterv1.UpdateStatus_UPDATING, "in progress")
	w.now = p.Next
	w.reconcile(t)
	w.wantRollout(t, musterv1.UpdateStatus_COMPLETED, "completed")
	if w.now.Sub(began) != 30*time.Second {
		t.Errorf("completed after %v", w.now.Sub(began))
	}
}

func TestFailureWithinTheMonitorPauses(t *testing.T) {
	for after, want := range map[time.Duration]musterv1.UpdateStatus_State{
		29 * time.Second: musterv1.UpdateStatus_PAUSED, 31 * time.Second: musterv1.UpdateStatus_COMPLETED,
	} {
		w := updated(t, 1, &musterv1.UpdateConfig{Parallelism: 1, Monitor: seconds(30)})
		for w.of(2) < 1 || w.inFlight() > 0 {
			w.reconcile(t)
			w.settle()
		}
		w.now = w.now.Add(after)
		w.report(w.one(t, 1), failed)
		w.reconcile(t)
		if w.rollout.State != want {
			t.Errorf("failed after %v: %v, want %v", after, w.rollout, want)
		}
	}
}

func TestPausedUpdateStaysPaused(t *testing.T) {
	w := updated(t, 4, &musterv1.UpdateConfig{Parallelism: 1})
	for range 20 {
		if w.reconcile(t); w.rollout.State == musterv1.UpdateStatus_PAUSED {
			break
		}
		w.fails(2)
		w.settle()
	}
	w.wantRollout(t, musterv1.UpdateStatus_PAUSED, "(1 of 4 slots failed)")
	old := w.one(t, 4)
	w.report(old, failed) // one of the former spec is replaced by such a one
	w.replicas(5)
	w.converge(t)
	w.wantRollout(t, musterv1.UpdateStatus_PAUSED, "failed")
	if now := w.one(t, 4); now.Key == old.Key || now.Record.SpecVersion != 1 || w.of(1) != 3 || w.of(2) != 2 {
		t.Errorf("a paused update went on:%s", w.print())
	}
	w.service.Attempt++
	w.converge(t)
	w.wantRollout(t, musterv1.UpdateStatus_COMPLETED, "completed")
	if w.of(2) != 5 {
		t.Errorf("the next attempt did not end it:%s", w.print())
	}
}

func TestToleratedFailures(t *testing.T) {
	for ratio, want := range map[float32]string{0: "1 of 10", 0.1: "2 of 10", 0.7: "8 of 10", 0.99: "10 of 10"} {
		w := updated(t, 10, &musterv1.UpdateConfig{Parallelism: 1, MaxFailureRatio: ratio})
		for range 200 {
			w.reconcile(t)
			w.fails(2)
			w.settle()
			w.now = w.now.Add(100 * time.Millisecond)
		}
		if w.rollout.State != musterv1.UpdateStatus_PAUSED || !strings.Contains(w.rollout.Message, "("+want) {
			t.Errorf("ratio %v: %v, want %s", ratio, w.rollout, want)
		}
	}
}

// Failures are counted although the tasks that failed are forgotten.
func TestFailuresOutliveTheirTasks(t *testing.T) {
	w := updated(t, 4, &musterv1.UpdateConfig{Parallelism: 1, MaxFailureRatio: 0.5})
	w.history = 1
	for range 300 {
		w.reconcile(t)
		w.fails(2)
		w.settle()
		w.now = w.now.Add(300 * time.Millisecond)
	}
	w.wantRollout(t, musterv1.UpdateStatus_PAUSED, "(3 of 4 slots failed)")
}

func TestAutomaticRollback(t *testing.T) {
	for _, order := range []musterv1.UpdateConfig_Order{musterv1.UpdateConfig_STOP_FIRST, musterv1.UpdateConfig_START_FIRST} {
		w := updated(t, 4, &musterv1.UpdateConfig{Parallelism: 2, FailureAction: musterv1.UpdateConfig_ROLLBACK, Order: order})
		digest := w.service.TaskDigest
		for range 20 {
			if w.reconcile(t); w.rollout.RolledBack {
				break
			}
			w.fails(2)
			w.settle()
		}
		if order == musterv1.UpdateConfig_STOP_FIRST {
			w.wantRollout(t, musterv1.UpdateStatus_ROLLBACK_STARTED, "rolled back due to failure")
		}
		w.converge(t)
		w.wantRollout(t, musterv1.UpdateStatus_ROLLBACK_COMPLETED, "rolled back due to failure")
		if w.of(1) != 4 || w.of(2) != 0 || string(w.service.TaskDigest) != string(digest) {
			t.Errorf("%v: not rolled back:%s", order, w.print())
		}
		w.replicas(6) // new slots follow what was rolled back to
		w.converge(t)
		if w.of(1) != 6 {
			t.Errorf("%v: scaled to the failed spec:%s", order, w.print())
		}
		w.service.Attempt++
		w.converge(t)
		w.wantRollout(t, musterv1.UpdateStatus_COMPLETED, "completed")
		if w.of(2) != 6 {
			t.Errorf("%v: another attempt does not update:%s", order, w.print())
		}
	}
}

func TestFailingRollbackPauses(t *testing.T) {
	for _, action := range []musterv1.UpdateConfig_FailureAction{musterv1.UpdateConfig_PAUSE, musterv1.UpdateConfig_ROLLBACK} {
		w := updated(t, 4, &musterv1.UpdateConfig{Parallelism: 2, FailureAction: musterv1.UpdateConfig_ROLLBACK})
		w.service.Spec.Rollback = &musterv1.UpdateConfig{Parallelism: 1, FailureAction: action}
		for range 40 {
			w.reconcile(t)
			w.fails(2)
			if w.rollout.RolledBack {
				w.fails(1)
			}
			w.settle()
		}
		w.wantRollout(t, musterv1.UpdateStatus_ROLLBACK_PAUSED, "rollback paused due to failure")
	}
}

func TestManualRollback(t *testing.T) {
	w := updated(t, 3, nil)
	w.converge(t)
	w.service.Spec.Rollback = &musterv1.UpdateConfig{Parallelism: 2}
	w.rollBack()
	w.reconcile(t)
	w.wantRollout(t, musterv1.UpdateStatus_ROLLBACK_STARTED, "asked for")
	if n := w.inFlight(); n != 2 {
		t.Errorf("%d slots have their turn, want 2 by the rollback config", n)
	}
	w.converge(t)
	w.wantRollout(t, musterv1.UpdateStatus_ROLLBACK_COMPLETED, "rollback completed")
}

func TestContinueDoesNotWatch(t *testing.T) {
	w := updated(t, 4, &musterv1.UpdateConfig{Parallelism: 1, FailureAction: musterv1.UpdateConfig_CONTINUE, Monitor: seconds(1000)})
	for range 20 {
		w.reconcile(t)
		w.fails(2)
		w.settle()
	}
	w.wantRollout(t, musterv1.UpdateStatus_COMPLETED, "completed")
}

// A task that is lost with its node has not failed, and its slot's turn lasts until
// another runs.
func TestLostNodeIsNoFailure(t *testing.T) {
	w := updated(t, 2, &musterv1.UpdateConfig{Parallelism: 1, Order: musterv1.UpdateConfig_START_FIRST})
	w.reconcile(t)
	w.assign(w.live(1)[1], "c")
	delete(w.nodes, "c")
	w.reconcile(t)
	if w.inFlight() != 1 || len(w.live(2)) != 1 {
		t.Errorf("the turn of slot 1 is over:%s", w.print())
	}
	w.converge(t)
	w.wantRollout(t, musterv1.UpdateStatus_COMPLETED, "completed")
}

// A task that is lost and not to be replaced ends its slot's turn in the same look,
// in which the next slot has its turn already.
func TestLostTaskThatNoneFollowsEndsItsTurn(t *testing.T) {
	w := newWorld()
	once := restart(&musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
	w.spec(null(1, once))
	w.replicas(2)
	w.converge(t)
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1}
	w.spec(null(2, once))
	w.reconcile(t)
	w.assign(w.one(t, 1), "c")
	delete(w.nodes, "c")
	w.reconcile(t)
	if w.one(t, 2).Record.SpecVersion != 2 {
		t.Errorf("slot 2 waits for one that has come to its end:%s", w.print())
	}
	if p := w.reconcile(t); !p.Empty() {
		t.Errorf("a second look finds more to do: %s", describe(p))
	}
}

func TestGlobalUpdateNodeByNode(t *testing.T) {
	w := onEvery(t, nil)
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1}
	w.spec(null(2))
	w.reconcile(t)
	if w.of(2) != 1 {
		t.Errorf("several nodes have their turn:%s", w.print())
	}
	w.converge(t)
	if w.of(2) != 3 {
		t.Errorf("not on all nodes:%s", w.print())
	}
}

// TestHealthyUpdate has updates go well, in any order of events: at most as many slots as
// allowed are without a running task at any time, and none with START_FIRST.
func TestHealthyUpdate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.IntRange(1, 8).Draw(t, "replicas")
		u := &musterv1.UpdateConfig{
			Parallelism: uint64(rapid.IntRange(1, 4).Draw(t, "parallelism")), Order: musterv1.UpdateConfig_Order(rapid.IntRange(1, 2).Draw(t, "order")),
			Delay: seconds(rapid.IntRange(0, 2).Draw(t, "delay")),
		}
		w := newWorld()
		w.spec(null(1))
		w.replicas(uint64(replicas))
		w.eventually(t)
		w.service.Spec.Update = u
		version := uint64(2)
		w.spec(null(version))
		for range 1000 {
			p := w.checkedReconcile(t)
			if version < 5 && rapid.IntRange(0, 30).Draw(t, "another") == 0 {
				version++
				w.spec(null(version))
			}
			runs := map[uint64]bool{}
			var waiting []*state.Task
			for _, x := range w.sorted() {
				runs[x.Record.Slot] = runs[x.Record.Slot] || x.State() == running && x.Desired() == running
				if x.NodeID == "" && x.Live() || x.NodeID != "" && x.State() < min(x.Desired(), shutdown) {
					waiting = append(waiting, x)
				}
			}
			down := 0
			for _, r := range runs {
				if !r {
					down++
				}
			}
			if most := int(u.Parallelism); down > most || u.Order == musterv1.UpdateConfig_START_FIRST && down > 0 {
				t.Fatal(fmt.Sprintf("%d slots run nothing, at once %d may:%s", down, most, w.print()))
			}
			switch {
			case len(waiting) > 0:
				x := rapid.SampledFrom(waiting).Draw(t, "task")
				if x.NodeID == "" {
					w.assign(x, "a")
				} else {
					w.report(x, min(x.Desired(), shutdown))
				}
			case !p.Next.IsZero():
				w.now = p.Next
			case p.Empty() && w.rollout.State == musterv1.UpdateStatus_COMPLETED && w.of(w.service.SpecVersion) == replicas:
				return
			}
		}
		t.Fatal("does not end: " + w.print())
	})
}
