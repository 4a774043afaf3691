package workerd_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd"
)

// refusal is what a dispatcher says to a worker that is not the node.
func refusal(t *testing.T, reason dispatcherv1.Refusal_Reason) error {
	t.Helper()
	s, err := status.New(codes.AlreadyExists, "you are not the node").WithDetails(&dispatcherv1.Refusal{Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

// A machine was cloned while it ran: two workers have all in common, and each
// new session ends that of the other. They do not do so all the time.
func TestAnIdenticalWorkerIsNotFought(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		var waited time.Duration
		for i := range 8 {
			began := time.Now()
			s := d.await(t)
			waited = time.Since(began)
			if i > 0 && waited < 5*time.Second {
				t.Errorf("the worker came back after %s", waited)
			}
			s.welcome()
			s.assign(true, []assignment{nullTask("a", running, nil)})
			settle(100 * time.Millisecond)
			s.end <- status.Error(codes.Aborted, "replaced by another session")
			settle(0)
			wantHeld(t, e, "a")
		}
		if waited < time.Minute {
			t.Errorf("after 8 times the worker comes back after %s", waited)
		}
	})
}

// A worker that remembers tasks and is refused from its start on is a copy: it
// does nothing with them, however long that lasts, and continues once it is the
// node.
func TestACopyTouchesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		dataDir := t.TempDir()
		keep := func(cfg *workerd.Config) { cfg.DataDir = dataDir }
		w := start(t, n, set, keep)
		s := d.await(t)
		s.welcome()
		tasks := []assignment{
			nullTask("runs", running, nil), nullTask("parked", ready, nil), nullTask("prepares", running, map[string]any{"hangAt": "prepare"}),
			nullTask("starts", running, map[string]any{"hangAt": "start"}), nullTask("stops", running, map[string]any{"hangAt": "shutdown"}),
		}
		s.assign(true, tasks)
		settle(time.Second)
		s.assign(false, []assignment{tasks[4].desire(shutdown)})
		settle(time.Second)
		w.stop()
		before := a.calls()

		start(t, n, set, keep)
		for range 5 {
			s = d.await(t)
			s.end <- refusal(t, dispatcherv1.Refusal_NODE_TAKEN)
			settle(0)
		}
		if after := a.calls(); after != before {
			t.Errorf("a worker that is not the node made %d calls", after-before)
		}
		wantHeld(t, a.Executor, "parked", "prepares", "runs", "starts", "stops")
		s = d.await(t)
		s.welcome()
		settle(time.Second)
		s.wantStates(map[string]TaskState{
			"runs": running, "parked": ready, "prepares": TaskState_PREPARING, "starts": TaskState_STARTING, "stops": running,
		})
		if a.calls() == before {
			t.Error("once it is the node, the worker does nothing")
		}
	})
}

// A worker that was the node and learns that another has become it in its
// absence stops its tasks, which are the other's now or have been replaced.
func TestAWorkerThatWasReplacedStopsItsTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		tasks := []assignment{nullTask("a", running, nil), nullTask("b", running, nil)}
		s.assign(true, tasks)
		settle(time.Second)
		s.end <- status.Error(codes.Unavailable, "the cable is out")
		settle(0)
		began := time.Now()
		first := time.Time{}
		for time.Since(began) < 50*time.Second {
			s = d.await(t)
			if first.IsZero() {
				first = time.Now()
			}
			if time.Since(first) < time.Minute {
				// It may be a misunderstanding.
				wantHeld(t, e, "a", "b")
			}
			s.end <- refusal(t, dispatcherv1.Refusal_NODE_TAKEN)
			settle(0)
		}
		for time.Since(first) < 5*time.Minute {
			s = d.await(t)
			s.end <- refusal(t, dispatcherv1.Refusal_NODE_TAKEN)
			settle(time.Second)
		}
		wantHeld(t, e)
		// The other goes, and this worker is the node again.
		s = d.await(t)
		s.welcome()
		s.assign(true, []assignment{tasks[0].known(running), nullTask("c", running, nil)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": failed, "c": running})
	})
}

// The worker of a node that an operator removed stops and removes its tasks, also
// if it was away meanwhile.
func TestTheWorkerOfARemovedNodeStopsItsTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, e := nullSet(t)
		dataDir := t.TempDir()
		keep := func(cfg *workerd.Config) { cfg.DataDir = dataDir }
		w := start(t, n, set, keep)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil), nullTask("b", ready, nil)})
		settle(time.Second)
		w.stop()
		start(t, n, set, keep)
		d.await(t).end <- refusal(t, dispatcherv1.Refusal_NODE_REMOVED)
		settle(time.Second)
		wantHeld(t, e)
	})
}
