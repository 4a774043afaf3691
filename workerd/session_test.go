package workerd_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

func TestEverythingIsReportedAnewInEachSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, stop := n.serve(t, "d1:1")
		set, _ := nullSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		if n := s.hello.GetTasks(); n != 0 {
			t.Errorf("the first hello tells of %d tasks", n)
		}
		s.welcome()
		tasks := []assignment{nullTask("a", running, nil), nullTask("b", running, map[string]any{"runFor": "10m", "exitCode": 1})}
		s.assign(true, tasks)
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": running, "b": running})
		// The dispatcher is away for an hour. The worker looks after its tasks.
		stop()
		settle(time.Hour)
		d, _ = n.serve(t, "d1:1")
		back := time.Now()
		s = d.await(t)
		if waited := time.Since(back); waited > 2*time.Second {
			t.Errorf("the worker came back after %s", waited)
		}
		if n := s.hello.GetTasks(); n != 2 {
			t.Errorf("the second hello tells of %d tasks, want 2", n)
		}
		s.welcome()
		settle(100 * time.Millisecond)
		s.wantStates(map[string]TaskState{"a": running, "b": failed})
		if got := s.state("b").GetTimestamp().AsTime(); back.Sub(got) < 40*time.Minute {
			t.Errorf("b ended at %s, an hour ago is %s", got, back.Add(-time.Hour))
		}
		if s.reports[0].GetSequence() != 1 {
			t.Errorf("first report of the session has sequence %d", s.reports[0].GetSequence())
		}
	})
}

func TestRedirectsAreFollowedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d1, _ := n.serve(t, "d1:1")
		d2, stop2 := n.serve(t, "d2:1")
		d3, _ := n.serve(t, "d3:1")
		set, _ := nullSet(t)
		began := time.Now()
		start(t, n, set, nil)
		d1.await(t).redirect("d2:1", "d1:1", "d2:1", "d3:1")
		s := d2.await(t)
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the worker was redirected after %s", waited)
		}
		s.welcome("d1:1", "d2:1", "d3:1")
		settle(time.Second)
		// The shard moves: a redirect can come at any time.
		s.redirect("d3:1")
		s = d3.await(t)
		s.welcome("d1:1", "d2:1", "d3:1")
		settle(time.Second)
		n.dialled()
		// The owner goes; any other will know.
		s.end <- status.Error(codes.Unavailable, "going down")
		s = d3.await(t)
		s.end <- status.Error(codes.Unavailable, "going down")
		stop2()
		settle(5 * time.Second)
		if dials := n.dialled(); !slices.Contains(dials, "d1:1") {
			t.Errorf("dialled %v, and never d1", dials)
		}
	})
}

func TestNobodyOwnsTheShardForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		var waits []time.Duration
		last := time.Now()
		for range 8 {
			s := d.await(t)
			waits = append(waits, time.Since(last))
			last = time.Now()
			s.redirect("")
		}
		if waits[1] > 100*time.Millisecond || waits[7] > 2*time.Second || waits[7] < time.Second {
			t.Errorf("the worker came after %v", waits)
		}
	})
}

func TestHeartbeatsKeepTheirPeriod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		settle(time.Minute + time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		// Gaps are 90 to 100 % of the period, 2 s.
		if n := len(s.heartbeats); n < 30 || n > 34 {
			t.Errorf("%d heartbeats in a minute, want 30 to 34", n)
		}
	})
}

// A period that changes during a session holds from then on.
func TestHeartbeatsTakeANewPeriod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		settle(time.Second)
		s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
			HeartbeatPeriod: durationpb.New(10 * time.Second),
		}}})
		settle(time.Minute + time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		// One may have come with the former period.
		if n := len(s.heartbeats); n < 6 || n > 8 {
			t.Errorf("%d heartbeats in a minute, want 6 to 8", n)
		}
	})
}

func TestReportsAreKeptUntilAcknowledged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.mute = true
		s.welcome()
		var tasks []assignment
		for i := range 50 {
			tasks = append(tasks, nullTask(fmt.Sprint("t", i), running, map[string]any{"prepareDelay": fmt.Sprintf("%dms", i*20)}))
		}
		s.assign(true, tasks)
		settle(10 * time.Second)
		if len(s.reports) != 1 {
			t.Errorf("%d reports without an acknowledgement, want 1", len(s.reports))
		}
		// The dispatcher never acknowledges: the worker gives it up and tells
		// the next everything.
		s = d.await(t)
		s.welcome()
		settle(time.Second)
		if len(s.statuses) != 50 {
			t.Errorf("%d tasks reported, want 50", len(s.statuses))
		}
		for id, reported := range s.statuses {
			if reported.GetStatus().GetState() != running {
				t.Errorf("%s is %s", id, reported.GetStatus().GetState())
			}
		}
		if len(s.reports) > 2 {
			t.Errorf("%d reports for what was known at once", len(s.reports))
		}
	})
}

func TestGoodbye(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, w := alone(t, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil)})
		settle(time.Second)
		began := time.Now()
		w.stop()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("the worker took %s to stop", took)
		}
		if !s.goodbye.GetRestarting() {
			t.Errorf("goodbye = %v", s.goodbye)
		}
		s.wantStates(map[string]TaskState{"a": running})
		listed, err := e.List(t.Context(), "")
		if err != nil || len(listed) != 1 || listed[0].State != sdk.Running {
			t.Errorf("after the worker's end: %v, %v", listed, err)
		}
	})
}

func TestAWorkerStopsWhateverItsDispatcherDoes(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, n *network){
		"no listener": func(*testing.T, *network) {},
		"no welcome":  func(t *testing.T, n *network) { n.serve(t, "d1:1") },
		"no end": func(t *testing.T, n *network) {
			d, _ := n.serve(t, "d1:1")
			go func() { (<-d.sessions).welcome() }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				prepare(t, n)
				set, _ := nullSet(t)
				w := start(t, n, set, nil)
				settle(time.Second)
				began := time.Now()
				w.stop()
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("the worker took %s to stop", took)
				}
			})
		})
	}
}

func TestADispatcherThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		began := time.Now()
		d.await(t)
		d.await(t)
		if waited := time.Since(began); waited < 5*time.Second || waited > 6*time.Second {
			t.Errorf("the worker gave up after %s, want 5s", waited)
		}
	})
}

// A dispatcher that hangs in the middle of a session is left as soon as it would
// leave a worker that does, and not when its connection or a report times out.
func TestADispatcherThatFallsSilentIsLeft(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		says        bool
		least, most time.Duration
	}{
		"answers heartbeats":       {says: true, least: 3600 * time.Millisecond, most: 6 * time.Second},
		"is of an earlier version": {least: time.Hour, most: 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d, _, _ := alone(t, nil)
				s := d.await(t)
				s.answers = c.says
				s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
					HeartbeatPeriod: durationpb.New(2 * time.Second), AnswersHeartbeats: c.says,
				}}})
				settle(time.Minute + time.Second)
				select {
				case <-d.sessions:
					t.Fatal("the worker left a dispatcher that answers")
				default:
				}
				s.mu.Lock()
				s.answers, s.mute = false, true
				s.mu.Unlock()
				began := time.Now()
				select {
				case <-d.sessions:
				case <-time.After(2 * time.Hour):
				}
				if waited := time.Since(began); waited < c.least || waited > c.most {
					t.Errorf("the worker left after %s, want %s to %s", waited, c.least, c.most)
				}
			})
		})
	}
}

func TestASetWithoutItsSpecIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		task := nullTask("a", running, nil)
		s.sent[string(task.SpecDigest)] = true
		s.assign(true, []assignment{task})
		s = d.await(t)
		s.welcome()
		s.assign(true, []assignment{task})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": running})
		wantHeld(t, e, "a")
	})
}
