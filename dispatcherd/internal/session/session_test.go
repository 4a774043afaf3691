package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func TestFirstMessageMustBeAValidHello(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for node, want := range map[string]string{"": "node_id is empty", "n/1": "slash", "heartbeat": "must be hello"} {
			w := s.worker()
			if node == "heartbeat" {
				w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{}})
			} else {
				w.hello(node)
			}
			if err, ended := w.end(); !ended || status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: session ended (%t) with %v, want INVALID_ARGUMENT with %q", node, ended, err, want)
			}
		}
		silent := s.worker()
		time.Sleep(10*time.Second - time.Millisecond)
		if err, ended := silent.end(); ended {
			t.Fatalf("session ended early with %v", err)
		}
		time.Sleep(time.Millisecond)
		if err, _ := silent.end(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("session without hello ended with %v, want DEADLINE_EXCEEDED", err)
		}
	})
}

func TestWorkerIsRedirectedToTheOwner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.set(func() { s.owned, s.owner = false, "d2" })
		w := s.connect()
		if err, ended := w.end(); !ended || err != nil {
			t.Fatalf("session ended (%t) with %v, want the end of the stream", ended, err)
		}
		if got := w.received(); len(got) != 1 || got[0].GetRedirect().GetAddress() != "d2:4245" || len(got[0].GetRedirect().GetDispatchers()) != 2 {
			t.Errorf("worker received %v, want a redirect to d2", got)
		}
		// No replica owns the shard for a while.
		s.set(func() { s.owner = "" })
		w = s.connect()
		time.Sleep(2*time.Second - time.Millisecond)
		if got := w.received(); len(got) != 0 {
			t.Fatalf("worker received %v before the end of the wait", got)
		}
		time.Sleep(time.Millisecond)
		if got := w.received(); len(got) != 1 || got[0].GetRedirect() == nil || got[0].GetRedirect().Address != "" {
			t.Errorf("worker received %v, want a redirect without an owner", got)
		}
		// This replica becomes the owner while the worker waits.
		w = s.connect()
		time.Sleep(time.Second)
		s.set(func() { s.owned, s.owner = true, "d1" })
		if got := kinds(w.received()); !cmp.Equal(got, []string{"Welcome", "Assignments"}) {
			t.Errorf("worker received %v, want a welcome", got)
		}
	})
}

func TestContestedNodeIsTriedUntilItIsDecided(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.set(func() { s.attach = &liveness.ContestedError{} })
		w := s.connect()
		time.Sleep(time.Minute)
		if err, ended := w.end(); ended {
			t.Fatalf("session ended with %v before it was decided", err)
		}
		s.set(func() { s.attach = nil })
		time.Sleep(claimPoll)
		if got := kinds(w.received()); len(got) == 0 || got[0] != "Welcome" {
			t.Errorf("worker received %v, want a welcome", got)
		}
		taken := status.Error(codes.AlreadyExists, "node is another worker")
		s.set(func() { s.attach = taken })
		if err, ended := s.connect().end(); !ended || !errors.Is(err, taken) {
			t.Errorf("session ended (%t) with %v, want %v", ended, err, taken)
		}
	})
}

func TestCompleteSetWaitsForLateObjects(t *testing.T) {
	t.Parallel()
	for name, appear := range map[string]bool{"objects appear": true, "objects never appear": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t)
				s.assign("t1")
				w := s.connect()
				time.Sleep(time.Second - time.Millisecond)
				if got := kinds(w.received()); !cmp.Equal(got, []string{"Welcome"}) {
					t.Fatalf("worker received %v, want only a welcome", got)
				}
				if appear {
					s.service()
					s.session().ObjectsChanged(nil)
				} else {
					time.Sleep(time.Millisecond)
				}
				if got := kinds(w.received()); !cmp.Equal(got, []string{"Assignments"}) {
					t.Fatalf("worker received %v, want the complete set", got)
				}
				if got := w.tasks(); got != map[bool]int{true: 1, false: 0}[appear] {
					t.Errorf("worker has %d tasks", got)
				}
				if got := s.happened(); !cmp.Equal(got, []string{"settle node n1"}) {
					t.Errorf("events: %v", got)
				}
				if !appear {
					s.service()
					s.session().ObjectsChanged(nil)
					if got := w.tasks(); got != 1 {
						t.Errorf("worker has %d tasks after the objects appeared", got)
					}
				}
			})
		})
	}
}

// TestTasksThatWaitForANetworkAreSentWhenItIsThere checks that they are, even if another
// task that did not have to wait has brought the network already.
func TestTasksThatWaitForANetworkAreSentWhenItIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.service()
		w := s.connect()
		s.session()
		assign := func(task string, want int) {
			t.Helper()
			key := s.assign(task)
			s.update(func(tx *store.Tx) {
				s.tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: 1, Networks: []string{"net1"}})
			})
			s.session().AssignmentsChanged([]string{key})
			if got := w.tasks(); got != want {
				t.Fatalf("the worker has %d tasks after %s was assigned, want %d", got, task, want)
			}
		}
		assign("t1", 0)
		s.update(func(tx *store.Tx) {
			s.tables.Networks.Put(tx, "net1", &recordv1.Network{Spec: &musterv1.NetworkSpec{Name: "backend"}})
			s.tables.NetworkStates.Put(tx, "net1", &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}})
			s.tables.Blocks.Put(tx, state.BlockKey("net1", 1), &recordv1.Block{NodeId: "n1", Subnets: []string{"10.64.1.0/26"}})
		})
		s.networks.Advance(s.store.Snapshot())
		assign("t2", 1)
		s.session().NetworksChanged([]string{"net1"})
		if got := w.tasks(); got != 2 {
			t.Errorf("the worker has %d tasks, want 2", got)
		}
	})
}

func TestWorkerIsToldBeforeStatusesAreSettled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.service()
		w := s.connect()
		w.received()
		key := s.assign("t1")
		if !s.session().AssignmentsChanged([]string{key}) || w.tasks() != 1 {
			t.Fatalf("worker has %d tasks, want 1", w.tasks())
		}
		s.happened()
		w.mu.Lock()
		w.deaf = true
		w.mu.Unlock()
		s.update(func(tx *store.Tx) { s.tables.Assignments.Delete(tx, key) })
		s.session().AssignmentsChanged([]string{key})
		if got := s.happened(); len(got) != 0 {
			t.Errorf("before the worker was told: %v", got)
		}
		// What a session could not send goes back to its shard.
		s.session().AssignmentsChanged([]string{"n1/s/other"})
		w.cancel()
		if got := s.happened(); !cmp.Equal(got, []string{"detach n1 0", "changed n1 [n1/s/other]"}) {
			t.Errorf("events: %v", got)
		}
	})
}

func TestReportsOfForeignTasksAreIgnored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.service()
		s.assign("t1")
		w := s.connect()
		// Sent at once: the reports wait for the complete set.
		w.report(1, "foreign", running)
		w.report(2, "t1", musterv1.TaskState_ORPHANED)
		w.report(3, "t1", running)
		if got := s.happened(); !cmp.Equal(got, []string{"settle node n1", "write n1/s/t1 RUNNING"}) &&
			!cmp.Equal(got, []string{"write n1/s/t1 RUNNING", "settle node n1"}) {
			t.Errorf("events: %v", got)
		}
		messages := w.received()
		if last := messages[len(messages)-1].GetStatusAck(); last.GetSequence() != 3 {
			t.Errorf("worker received %v, want an acknowledgement of 3 at the end", messages)
		}
	})
}

func TestMessagesOfTheWorkerReachTheShard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := s.connect()
		w.received()
		s.happened()
		time.Sleep(time.Second)
		w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{}})
		if got := kinds(w.received()); !cmp.Equal(got, []string{"HeartbeatAck"}) || !s.session().LastHeard().Equal(time.Now()) {
			t.Errorf("worker received %v, last heard %s", got, s.session().LastHeard())
		}
		w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Description{Description: &musterv1.NodeDescription{Hostname: "other"}}})
		synctest.Wait()
		w.say(&dispatcherv1.SessionRequest{}) // of a newer worker
		w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Goodbye{Goodbye: &dispatcherv1.Goodbye{Restarting: true}}})
		if got, want := s.happened(), []string{"adjust 2s", "describe other", fmt.Sprintf("detach n1 %d", liveness.Restarting), "detach n1 0"}; !cmp.Equal(got, want) {
			t.Errorf("events: %v, want %v", got, want)
		}
		if err, ended := w.end(); !ended || err != nil {
			t.Errorf("session ended (%t) with %v", ended, err)
		}
		w = s.connect()
		w.hello("n2")
		if err, _ := w.end(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("session with two hellos ended with %v, want INVALID_ARGUMENT", err)
		}
	})
}

func TestChangedSettingsAreSentAfterTheFirstWelcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := s.connect()
		if got := kinds(w.received()); !cmp.Equal(got, []string{"Welcome", "Assignments"}) {
			t.Fatalf("worker received %v, want one welcome and the complete set", got)
		}
		s.session().SetPeriod(5 * time.Second)
		got := w.received()
		if len(got) != 1 || got[0].GetWelcome().GetHeartbeatPeriod().AsDuration() != 5*time.Second {
			t.Errorf("worker received %v, want the new period", got)
		}
	})
}

func TestChangedDispatchersAreSentAfterTheFirstWelcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := s.connect()
		if got := w.received(); len(got[0].GetWelcome().GetDispatchers()) != 2 {
			t.Fatalf("worker received %v, want two dispatchers", got)
		}
		s.set(func() { s.members = s.members[:1] })
		s.session().DispatchersChanged()
		got := w.received()
		if len(got) != 1 || !cmp.Equal(got[0].GetDispatchers().GetAddresses(), []string{"d1:4245"}) {
			t.Errorf("worker received %v, want the remaining dispatcher", got)
		}
	})
}

func TestDeafWorkerDoesNotDelayTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := s.worker()
		w.deaf = true
		w.hello("n1")
		began := time.Now()
		s.session().End(ErrShardLost, s.server.Redirect(1))
		if s.session().AssignmentsChanged([]string{state.NodeTaskKey("n1", "s", "t")}) {
			t.Error("a session that has ended accepts changes")
		}
		if err := <-w.result; !errors.Is(err, ErrShardLost) || time.Since(began) != lastMessageTimeout {
			t.Errorf("session ended after %s with %v", time.Since(began), err)
		}
		deaf := s.worker()
		s.calls.Close()
		if err, _ := deaf.end(); !errors.Is(err, calls.ErrStopping) {
			t.Errorf("session ended with %v, want %v", err, calls.ErrStopping)
		}
	})
}
