package session

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const running = musterv1.TaskState_RUNNING

func TestHelloAndWelcomeBeginSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.set("t1", running)
		p := f.at("a").await()
		if p.hello.GetNodeId() != "node1" || p.hello.GetInstanceId() != "instance1" || p.hello.GetDescription().GetHostname() != "host1" {
			f.t.Errorf("hello = %v", p.hello)
		}
		if n := p.hello.GetTasks(); n != 0 {
			f.t.Errorf("the first hello tells of %d tasks", n)
		}
		if f.tasks.begun != 0 || f.client.Status().Connected {
			f.t.Error("the session began before the welcome")
		}
		p.welcome(nil)
		if f.tasks.begun != 1 || !f.client.Status().Connected {
			f.t.Errorf("after the welcome: begun %d times, status %+v", f.tasks.begun, f.client.Status())
		}
		p.end <- status.Error(codes.Unavailable, "going down")
		p = f.at("a").await()
		if n := p.hello.GetTasks(); n != 1 {
			f.t.Errorf("the second hello tells of %d tasks, want 1", n)
		}
		if s := f.client.Status(); s.Connected || s.Err == nil {
			f.t.Errorf("between sessions: %+v", s)
		}
	})
}

// TestPausesDoubleUpToTheLongest has every attempt fail: the pauses double up to
// two seconds, and each lies within the upper half of its range.
func TestPausesDoubleUpToTheLongest(t *testing.T) {
	inBubble(t, func(f *fixture) {
		var last time.Time
		for i := range 12 {
			p := f.at("a").await()
			if pause := time.Since(last); i > 0 {
				most := min(firstPause<<(i-1), longestPause)
				if pause < most/2 || pause > most+time.Millisecond {
					f.t.Errorf("pause %d = %s, want %s to %s", i, pause, most/2, most)
				}
			}
			last = time.Now()
			p.end <- status.Error(codes.Unavailable, "busy")
		}
	})
}

func TestWelcomeResetsPause(t *testing.T) {
	inBubble(t, func(f *fixture) {
		for range 8 {
			f.at("a").await().end <- status.Error(codes.Unavailable, "busy")
		}
		p := f.at("a").await()
		p.welcome(nil)
		ended := time.Now()
		p.end <- status.Error(codes.Unavailable, "going down")
		f.at("a").await()
		if pause := time.Since(ended); pause > firstPause {
			f.t.Errorf("pause after a session = %s, want at most %s", pause, firstPause)
		}
	})
}

// TestSilentDispatcherIsLeftAfterWelcomeTimeout connects to a dispatcher that never
// answers the hello.
func TestSilentDispatcherIsLeftAfterWelcomeTimeout(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.at("a").await()
		began := time.Now()
		f.at("a").await()
		if waited := time.Since(began); waited < 5*time.Second || waited > 6*time.Second {
			f.t.Errorf("waited %s for a welcome, want 5 s", waited)
		}
	})
}

func TestDispatcherThatBeginsWithAnythingElseIsLeft(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.ack(1)
		pass(time.Millisecond)
		if f.tasks.begun != 0 || f.client.Status().Err == nil {
			f.t.Errorf("begun %d times, status %+v", f.tasks.begun, f.client.Status())
		}
		f.at("a").await()
	})
}

func TestRedirectIsFollowedWithoutPause(t *testing.T) {
	inBubble(t, func(f *fixture) {
		b := f.network.serve("b")
		p := f.at("a").await()
		began := time.Now()
		p.redirect("b")
		b.await().welcome(nil)
		if waited := time.Since(began); waited > 0 {
			f.t.Errorf("the redirect was followed after %s", waited)
		}
		f.stop()
	})
}

// TestRedirectsInCircleEndInPause has two dispatchers name each other.
func TestRedirectsInCircleEndInPause(t *testing.T) {
	inBubble(t, func(f *fixture) {
		b := f.network.serve("b")
		began := time.Now()
		for range 2 {
			f.at("a").await().redirect("b")
			b.await().redirect("a")
		}
		f.at("a").await().redirect("b")
		pass(10 * time.Millisecond)
		if n := len(f.network.attempts()); n != mostRedirects+1 {
			f.t.Errorf("%d attempts in a row, want %d", n, mostRedirects+1)
		}
		pass(time.Minute)
		if len(f.network.attempts()) == 0 {
			f.t.Errorf("no attempt within %s", time.Since(began))
		}
		f.stop()
	})
}

// TestLearnedDispatchersAreTried has the first dispatcher name others and go: the
// worker tries them, and keeps the one of its settings.
func TestLearnedDispatchersAreTried(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(func(w *dispatcherv1.Welcome) { w.Dispatchers = []string{"b", "c"} })
		// A later welcome replaces the set.
		p.welcome(func(w *dispatcherv1.Welcome) { w.Dispatchers = []string{"c", "d"} })
		f.network.dialled()
		p.end <- status.Error(codes.Unavailable, "going down")
		pass(time.Minute)
		tried := f.network.dialled()
		for _, address := range []string{"a", "c", "d"} {
			if !slices.Contains(tried, address) {
				f.t.Errorf("tried %v, and not %s", tried, address)
			}
		}
		if slices.Contains(tried, "b") {
			f.t.Errorf("tried %v, of which b is no longer a dispatcher", tried)
		}
	})
}

// TestChangedDispatchersAreFollowed names a new dispatcher during a session, after a
// message that this version does not know, and ends the session.
func TestChangedDispatchersAreFollowed(t *testing.T) {
	inBubble(t, func(f *fixture) {
		b := f.network.serve("b")
		p := f.at("a").await()
		p.welcome(nil)
		p.send(&dispatcherv1.SessionResponse{})
		p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Dispatchers{
			Dispatchers: &dispatcherv1.Dispatchers{Addresses: []string{"a", "b"}},
		}})
		pass(time.Millisecond)
		f.network.dialled()
		p.end <- errors.New("the dispatcher ends")
		pass(time.Second)
		select {
		case <-b.sessions:
		default:
			f.t.Errorf("the worker tried %v, want b after a has ended", f.network.dialled())
		}
	})
}

// TestHeartbeatsAreSpread connects many workers at the same moment: their heartbeats
// are spread over the period, and none is late.
func TestHeartbeatsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers, period = 200, 2 * time.Second
		n := newNetwork(t)
		d := n.serve("a")
		d.answers.Store(true)
		for i := range workers {
			n.client(fmt.Sprintf("n%d", i), newTasks(), newNode())
		}
		began := time.Now()
		var peers []*peer
		for range workers {
			p := d.await()
			p.welcome(func(w *dispatcherv1.Welcome) {
				w.HeartbeatPeriod, w.AnswersHeartbeats = durationpb.New(period), true
			})
			peers = append(peers, p)
		}
		pass(time.Minute)
		// share counts the heartbeats by the tenth of the period that they fall in,
		// for the first period and for the last.
		var share [2][10]int
		gaps := map[time.Duration]bool{}
		for _, p := range peers {
			p.mu.Lock()
			node, beats := p.hello.GetNodeId(), append([]time.Time{began}, p.beats...)
			p.mu.Unlock()
			for i, at := range beats[1:] {
				gap := at.Sub(beats[i])
				if gap > period || i > 0 && gap < period*9/10 {
					t.Fatalf("heartbeat %d of node %s came after %s, want at most %s and at least nine tenths of it", i, node, gap, period)
				}
				gaps[gap] = true
			}
			if late := began.Add(time.Minute).Sub(beats[len(beats)-1]); late > period {
				t.Errorf("node %s was last heard %s ago", node, late)
			}
			share[0][beats[1].Sub(began)*10/(period+1)]++
			share[1][beats[len(beats)-1].Sub(began.Add(time.Minute-period))*10/(period+1)]++
		}
		for i, tenths := range share {
			if most := slices.Max(tenths[:]); most > workers/4 {
				t.Errorf("period %d: %d of %d heartbeats fall in one tenth: %v", i, most, workers, tenths)
			}
		}
		if len(gaps) < workers {
			t.Errorf("there are only %d different times between heartbeats", len(gaps))
		}
	})
}

func TestHeartbeatsFollowPeriod(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(func(w *dispatcherv1.Welcome) { w.HeartbeatPeriod = nil })
		pass(time.Minute + time.Second)
		p.mu.Lock()
		beats := len(p.beats)
		p.beats = nil
		p.mu.Unlock()
		if want := int(time.Minute / defaultPeriod); beats < want || beats > want*5/4 {
			f.t.Errorf("%d heartbeats in a minute without a period, want about %d", beats, want)
		}
		p.welcome(func(w *dispatcherv1.Welcome) { w.HeartbeatPeriod = durationpb.New(10 * time.Second) })
		pass(time.Minute + time.Second)
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.beats); n < 6 || n > 8 {
			f.t.Errorf("%d heartbeats in a minute with a period of 10 s, want 6 to 8", n)
		}
	})
}

// TestUnansweredHeartbeatsEndSession leaves a dispatcher that promised to answer
// heartbeats and does not.
func TestUnansweredHeartbeatsEndSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		began := time.Now()
		p.welcome(func(w *dispatcherv1.Welcome) { w.AnswersHeartbeats = true })
		f.at("a").await()
		// Heartbeats come after 90 to 100 % of the period, 2 s.
		if waited := time.Since(began); waited < 1800*time.Millisecond*mostUnanswered || waited > 8*time.Second {
			f.t.Errorf("left after %s", waited)
		}
	})
}

func TestChangedDescriptionIsSent(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(nil)
		f.node.rename("host2")
		pass(time.Millisecond)
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.received) != 1 || p.received[0].GetDescription().GetHostname() != "host2" {
			f.t.Errorf("received %v", p.received)
		}
	})
}

func TestRefusedAssignmentsEndSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.assignErr = errors.New("spec was not sent")
		p := f.at("a").await()
		p.welcome(nil)
		p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: &dispatcherv1.Assignments{}}})
		p = f.at("a").await()
		p.welcome(nil)
		if f.tasks.begun != 2 || len(f.tasks.assigned) != 1 {
			f.t.Errorf("begun %d times, assigned %d", f.tasks.begun, len(f.tasks.assigned))
		}
	})
}

// TestRefusalsAreAnsweredWithLongPauses refuses a worker that never was the node:
// it comes back ever later and keeps its tasks.
func TestRefusalsAreAnsweredWithLongPauses(t *testing.T) {
	inBubble(t, func(f *fixture) {
		last := time.Now()
		for i := range 8 {
			p := f.at("a").await()
			if pause := time.Since(last); i > 0 {
				most := min(refusedPause<<(i-1), longestRefusedPause)
				if pause < most/2 || pause > most+time.Millisecond {
					f.t.Errorf("pause %d = %s, want %s to %s", i, pause, most/2, most)
				}
			}
			last = time.Now()
			p.refuse(dispatcherv1.Refusal_NODE_TAKEN)
		}
		pass(time.Millisecond)
		if len(f.tasks.abandoned) != 0 {
			f.t.Errorf("tasks were given up: %v", f.tasks.abandoned)
		}
	})
}

// TestTasksAreAbandonedOnceAnotherWorkerIsTheNode refuses a worker that was the
// node: its tasks go once that has lasted, and not before.
func TestTasksAreAbandonedOnceAnotherWorkerIsTheNode(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(nil)
		pass(time.Hour)
		p.end <- status.Error(codes.Unavailable, "the cable is out")
		var first time.Time
		for len(f.tasks.abandoned) == 0 {
			p = f.at("a").await()
			if first.IsZero() {
				first = time.Now()
			}
			p.refuse(dispatcherv1.Refusal_NODE_TAKEN)
			pass(time.Millisecond)
			if time.Since(first) > time.Hour {
				f.t.Fatal("tasks were never given up")
			}
		}
		if waited := time.Since(first); waited < takenPatience {
			f.t.Errorf("tasks were given up after %s, want at least %s", waited, takenPatience)
		}
	})
}

func TestTasksOfRemovedNodeAreAbandonedAtOnce(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.at("a").await().refuse(dispatcherv1.Refusal_NODE_REMOVED)
		pass(time.Millisecond)
		if !slices.Equal(f.tasks.abandoned, []string{"the node was removed from the cluster"}) {
			f.t.Errorf("abandoned: %v", f.tasks.abandoned)
		}
	})
}

func TestGoodbyeEndsSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(nil)
		began := time.Now()
		f.stop()
		if took := time.Since(began); took > time.Second {
			f.t.Errorf("the end took %s", took)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.received); n != 1 || !p.received[0].GetGoodbye().GetRestarting() {
			f.t.Errorf("received %v", p.received)
		}
	})
}
