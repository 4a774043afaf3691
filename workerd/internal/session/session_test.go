package session

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const running = musterv1.TaskState_RUNNING

func TestHelloAndWelcomeBeginSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.set("t1", running)
		p := f.at("a").await(f.t)
		if p.hello.GetNodeId() != "node1" || p.hello.GetInstanceId() != "instance1" || p.hello.GetDescription().GetHostname() != "host1" {
			f.t.Errorf("hello = %v", p.hello)
		}
		if n := p.hello.GetTasks(); n != 0 {
			f.t.Errorf("the first hello tells of %d tasks", n)
		}
		if f.tasks.begun != 0 || f.client.Standing().Connected {
			f.t.Error("the session began before the welcome")
		}
		p.welcome(nil)
		if f.tasks.begun != 1 || !f.client.Standing().Connected {
			f.t.Errorf("after the welcome: begun %d times, standing %+v", f.tasks.begun, f.client.Standing())
		}
		p.end <- status.Error(codes.Unavailable, "going down")
		p = f.at("a").await(f.t)
		if n := p.hello.GetTasks(); n != 1 {
			f.t.Errorf("the second hello tells of %d tasks, want 1", n)
		}
		if s := f.client.Standing(); s.Connected || s.Err == nil {
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
			p := f.at("a").await(f.t)
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
			f.at("a").await(f.t).end <- status.Error(codes.Unavailable, "busy")
		}
		p := f.at("a").await(f.t)
		p.welcome(nil)
		ended := time.Now()
		p.end <- status.Error(codes.Unavailable, "going down")
		f.at("a").await(f.t)
		if pause := time.Since(ended); pause > firstPause {
			f.t.Errorf("pause after a session = %s, want at most %s", pause, firstPause)
		}
	})
}

// TestSilentDispatcherIsLeftAfterWelcomeTimeout connects to a dispatcher that never
// answers the hello.
func TestSilentDispatcherIsLeftAfterWelcomeTimeout(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.at("a").await(f.t)
		began := time.Now()
		f.at("a").await(f.t)
		if waited := time.Since(began); waited < 5*time.Second || waited > 6*time.Second {
			f.t.Errorf("waited %s for a welcome, want 5 s", waited)
		}
	})
}

func TestDispatcherThatBeginsWithAnythingElseIsLeft(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await(f.t)
		p.ack(1)
		pass(time.Millisecond)
		if f.tasks.begun != 0 || f.client.Standing().Err == nil {
			f.t.Errorf("begun %d times, standing %+v", f.tasks.begun, f.client.Standing())
		}
		f.at("a").await(f.t)
	})
}

func TestRedirectIsFollowedWithoutPause(t *testing.T) {
	inBubble(t, func(f *fixture) {
		b := f.network.serve(f.t, "b")
		p := f.at("a").await(f.t)
		began := time.Now()
		p.redirect("b")
		b.await(f.t).welcome(nil)
		if waited := time.Since(began); waited > 0 {
			f.t.Errorf("the redirect was followed after %s", waited)
		}
		f.stop()
	})
}

// TestRedirectsInCircleEndInPause has two dispatchers name each other.
func TestRedirectsInCircleEndInPause(t *testing.T) {
	inBubble(t, func(f *fixture) {
		b := f.network.serve(f.t, "b")
		began := time.Now()
		for range 2 {
			f.at("a").await(f.t).redirect("b")
			b.await(f.t).redirect("a")
		}
		f.at("a").await(f.t).redirect("b")
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
		p := f.at("a").await(f.t)
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

func TestHeartbeatsFollowPeriod(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await(f.t)
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
		p := f.at("a").await(f.t)
		began := time.Now()
		p.welcome(func(w *dispatcherv1.Welcome) { w.AnswersHeartbeats = true })
		f.at("a").await(f.t)
		// Heartbeats come after 90 to 100 % of the period, 2 s.
		if waited := time.Since(began); waited < 1800*time.Millisecond*mostUnanswered || waited > 8*time.Second {
			f.t.Errorf("left after %s", waited)
		}
	})
}

func TestStatusesAreResentUntilAcknowledged(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.set("t1", running)
		p := f.at("a").await(f.t)
		p.welcome(nil)
		pass(time.Second)
		f.tasks.set("t2", running)
		f.client.Changed("t2", true)
		pass(time.Second)
		// One report is under way at a time.
		if all := p.reports(); len(all) != 1 || !slices.Equal(reported(all[0]), []string{"t1"}) {
			f.t.Fatalf("reports = %v", all)
		}
		p.ack(1)
		pass(time.Second)
		if all := p.reports(); len(all) != 2 || !slices.Equal(reported(all[1]), []string{"t2"}) {
			f.t.Fatalf("reports after the acknowledgement = %v", all)
		}
		// The second report is never acknowledged: the next session gets everything.
		p = f.at("a").await(f.t)
		p.welcome(nil)
		pass(time.Second)
		if all := p.reports(); len(all) != 1 || all[0].GetSequence() != 1 || !slices.Equal(reported(all[0]), []string{"t1", "t2"}) {
			f.t.Errorf("reports of the next session = %v", all)
		}
		p.ack(1)
		pass(time.Hour)
		if all := p.reports(); len(all) != 1 {
			f.t.Errorf("%d reports although nothing has changed", len(all))
		}
	})
}

// TestAcknowledgementOfUnsentReportIsIgnored acknowledges more than was sent.
func TestAcknowledgementOfUnsentReportIsIgnored(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await(f.t)
		p.welcome(nil)
		p.ack(7)
		f.tasks.set("t1", running)
		f.client.Changed("t1", true)
		pass(time.Second)
		p.ack(7)
		f.tasks.set("t2", running)
		f.client.Changed("t2", true)
		pass(time.Second)
		if all := p.reports(); len(all) != 1 {
			f.t.Errorf("%d reports, want 1: the first is not acknowledged", len(all))
		}
	})
}

// reportedErrors acknowledges all reports of a session until none follows, and
// returns the error of each task that was reported.
func (p *peer) reportedErrors() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	for seen := 0; ; {
		pass(time.Second)
		reports := p.reports()
		if len(reports) == seen {
			return all
		}
		for _, r := range reports[seen:] {
			if size := proto.Size(r); size > mostReportBytes {
				p.t.Errorf("report %d has %d bytes, want at most %d", r.GetSequence(), size, mostReportBytes)
			}
			for _, s := range r.GetStatuses() {
				all[s.GetTaskId()] = s.GetStatus().GetError()
			}
			p.ack(r.GetSequence())
		}
		seen = len(reports)
	}
}

func TestReportsAreBoundedByBytes(t *testing.T) {
	inBubble(t, func(f *fixture) {
		for i := range 200 {
			id := fmt.Sprint("t", i)
			f.tasks.set(id, running)
			f.tasks.errors[id] = strings.Repeat("x", 40<<10)
		}
		p := f.at("a").await(f.t)
		p.welcome(nil)
		reported := p.reportedErrors()
		if !maps.Equal(reported, f.tasks.errors) {
			f.t.Errorf("%d of 200 statuses were reported with their errors", len(reported))
		}
		if n := len(p.reports()); n > 9 {
			f.t.Errorf("%d reports for 8 MB of statuses, want at most 9", n)
		}
	})
}

// TestOversizedStatusDoesNotBlockOthers has one task with an error that no message
// can carry.
func TestOversizedStatusDoesNotBlockOthers(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.set("huge", musterv1.TaskState_FAILED)
		f.tasks.errors["huge"] = "no such image: " + strings.Repeat("\u00e4", 3<<20)
		for i := range 10 {
			f.tasks.set(fmt.Sprint("t", i), running)
		}
		p := f.at("a").await(f.t)
		p.welcome(nil)
		reported := p.reportedErrors()
		if len(reported) != 11 {
			f.t.Errorf("%d of 11 statuses were reported", len(reported))
		}
		text := reported["huge"]
		if !strings.HasPrefix(text, "no such image: \u00e4") || !utf8.ValidString(text) || len(text) < 1<<10 || len(text) > mostStatusBytes {
			f.t.Errorf("the error of the oversized status has %d bytes and begins %.20q", len(text), text)
		}
	})
}

func TestChangedDescriptionIsSent(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await(f.t)
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
		p := f.at("a").await(f.t)
		p.welcome(nil)
		p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: &dispatcherv1.Assignments{}}})
		p = f.at("a").await(f.t)
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
			p := f.at("a").await(f.t)
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
		p := f.at("a").await(f.t)
		p.welcome(nil)
		pass(time.Hour)
		p.end <- status.Error(codes.Unavailable, "the cable is out")
		var first time.Time
		for len(f.tasks.abandoned) == 0 {
			p = f.at("a").await(f.t)
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
		f.at("a").await(f.t).refuse(dispatcherv1.Refusal_NODE_REMOVED)
		pass(time.Millisecond)
		if !slices.Equal(f.tasks.abandoned, []string{"the node was removed from the cluster"}) {
			f.t.Errorf("abandoned: %v", f.tasks.abandoned)
		}
	})
}

func TestGoodbyeEndsSession(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await(f.t)
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
