package liveness

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
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func TestSilentNodeIsDownAfterThreePeriods(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tracker := s.tracker("n1")
		sess := s.mustConnect(tracker, "n1")
		sess.live(tracker, time.Minute)
		sess.heartbeat(tracker)
		s.want("n1", ready)
		if n := s.cfg.Periods.Connected(); n != 1 {
			t.Errorf("%d sessions are counted, want 1", n)
		}
		time.Sleep(3*period - time.Millisecond)
		s.want("n1", ready)
		time.Sleep(time.Millisecond)
		s.want("n1", isDown)
		if err := sess.end(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("session ended with %v, want DEADLINE_EXCEEDED", err)
		}
		if n := s.cfg.Periods.Connected(); n != 0 {
			t.Errorf("%d sessions are counted, want none", n)
		}
		s.mustConnect(tracker, "n1")
		s.want("n1", ready)
	})
}

func TestEndOfASessionDecidesTheTimeout(t *testing.T) {
	t.Parallel()
	for how, tt := range map[Ending]struct {
		state musterv1.NodeStatus_State
		after time.Duration
	}{
		Closed:     {away, 3 * time.Second},
		Restarting: {unknown, 30 * time.Second},
		Left:       {isDown, 0},
	} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t)
				tracker := s.tracker("n1")
				sess := s.mustConnect(tracker, "n1")
				s.want("n1", ready)
				tracker.Detach(sess, how)
				s.want("n1", tt.state)
				tracker.Detach(sess, Left) // its end was noted before
				if tt.after > 0 {
					time.Sleep(tt.after - time.Millisecond)
					s.want("n1", tt.state)
					time.Sleep(time.Millisecond)
				}
				s.want("n1", isDown)
			})
		})
	}
}

func TestSessionsThatCannotBeTheNodeAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.update(func(tx *store.Tx) { s.tables.Nodes.Put(tx, "n1", &recordv1.Node{Removed: true}) })
		tracker := s.tracker("n1")
		_, err := s.connect(tracker, Worker{Node: "n1", Instance: "1"})
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "empty data directory") {
			t.Errorf("removed node: %v, want PERMISSION_DENIED that says what to do", err)
		}
		other := s.tracker("n2")
		full := &session{worker: Worker{Node: "n2", Instance: "1"}}
		if err := other.Attach(full, &dispatcherv1.Hello{NodeId: "n2", Tasks: 3}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("worker with tasks, and the store is empty: %v, want FAILED_PRECONDITION", err)
		}
		full.ended = true
		if err := other.Attach(full, &dispatcherv1.Hello{NodeId: "n2"}); !errors.Is(err, calls.ErrStopping) {
			t.Errorf("session that has ended: %v, want %v", err, calls.ErrStopping)
		}
		var refused error
		n := 0
		for ; refused == nil && n < 100; n++ {
			_, refused = s.connect(other, Worker{Node: "n2", Instance: "1"})
		}
		if status.Code(refused) != codes.Unavailable || n < sessionBurst || n > sessionBurst+1 {
			t.Errorf("after %d sessions: %v, want UNAVAILABLE", n, refused)
		}
		other.Close(errors.New("lost"), nil)
		if _, err := s.connect(other, Worker{Node: "n2", Instance: "1"}); !errors.Is(err, ErrNotOwned) {
			t.Errorf("after Close: %v, want ErrNotOwned", err)
		}
	})
}

func TestSecondWorkerIsRefusedWhileTheFirstIsHeard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tracker := s.tracker("n1")
		first := s.mustConnect(tracker, "n1")
		second := Worker{Node: "n1", Instance: "2", Address: "10.0.0.2", Begun: time.Now()}
		var contested *ContestedError
		if _, err := s.connect(tracker, second); !errors.As(err, &contested) {
			t.Fatalf("first attempt: %v, want a ContestedError", err)
		}
		time.Sleep(time.Second)
		first.heartbeat(tracker)
		_, err := s.connect(tracker, second)
		details := status.Convert(err).Details()
		if status.Code(err) != codes.AlreadyExists || len(details) != 1 || details[0].(*dispatcherv1.Refusal).Reason != dispatcherv1.Refusal_NODE_TAKEN {
			t.Errorf("second attempt: %v, details %v, want ALREADY_EXISTS and NODE_TAKEN", err, details)
		}
		if got := s.record("n1").Message; !strings.Contains(got, "10.0.0.2") {
			t.Errorf("the node's message is %q, want one that names the second worker", got)
		}
		first.live(tracker, conflictShown+time.Minute)
		if got := s.record("n1").Message; got != "" {
			t.Errorf("the node's message is still %q", got)
		}
		// The first worker is no longer heard.
		second.Begun = time.Now()
		if _, err := s.connect(tracker, second); !errors.As(err, &contested) {
			t.Fatalf("attempt: %v, want a ContestedError", err)
		}
		time.Sleep(claimPeriods * period)
		if _, err := s.connect(tracker, second); err != nil {
			t.Fatal(err)
		}
		if err := first.end(); status.Code(err) != codes.Aborted {
			t.Errorf("the first session ended with %v, want ABORTED", err)
		}
		s.want("n1", ready)
	})
}

// A dispatcher that was paused has not heard the holder, who may live.
func TestPausesDoNotDecideClaims(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tracker := s.tracker("n1")
		s.mustConnect(tracker, "n1")
		second := Worker{Node: "n1", Instance: "2", Address: "10.0.0.2", Begun: time.Now()}
		var contested *ContestedError
		for range 2 {
			if _, err := s.connect(tracker, second); !errors.As(err, &contested) {
				t.Fatalf("attempt: %v, want a ContestedError", err)
			}
			time.Sleep(claimPeriods * period)
			s.cfg.Pauses.Suspect()
		}
		time.Sleep(time.Second)
		if _, err := s.connect(tracker, second); !errors.As(err, &contested) {
			t.Errorf("attempt after the pause: %v, want a ContestedError", err)
		}
		time.Sleep(claimPeriods * period)
		if _, err := s.connect(tracker, second); err != nil {
			t.Errorf("attempt after the claim: %v", err)
		}
	})
}

// The next dispatcher remembers from the record which worker was the node.
func TestRecordNamesTheLastWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.update(func(tx *store.Tx) {
			s.tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: ready, InstanceId: "1", Address: "10.0.0.1"})
		})
		tracker := s.tracker("n1")
		var contested *ContestedError
		if _, err := s.connect(tracker, Worker{Node: "n1", Instance: "2", Address: "10.0.0.2"}); !errors.As(err, &contested) {
			t.Errorf("worker on another machine: %v, want a ContestedError", err)
		}
		if _, err := s.connect(tracker, Worker{Node: "n1", Instance: "2", Address: "10.0.0.1"}); err != nil {
			t.Errorf("worker that was restarted on its machine: %v", err)
		}
	})
}

func TestChangedAssignmentsReachTheSessionOrAreSettled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.cfg.Timeouts.Orphan = time.Minute
		tracker := s.tracker("n1")
		change := func(when string, want ...string) {
			t.Helper()
			s.wasSettled()
			tracker.AssignmentsChanged("n1", []string{"n1/s/t"})
			if diff := cmp.Diff(want, s.wasSettled()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		key := func(giveUp statuses.GiveUp) string { return fmt.Sprintf("n1/s/t %d", giveUp) }
		change("unknown node", key(statuses.Keep))
		sess := s.mustConnect(tracker, "n1")
		s.want("n1", ready)
		change("connected node")
		if len(sess.assigned) != 1 {
			t.Errorf("the session was told of %v", sess.assigned)
		}
		tracker.ObjectsChanged(nil)
		if sess.objects != 1 {
			t.Errorf("the session was told of new objects %d times", sess.objects)
		}
		tracker.NetworksChanged("n1", []string{"net1"})
		tracker.NetworksChanged("n2", []string{"net2"})
		if diff := cmp.Diff([]string{"net1"}, sess.networks); diff != "" {
			t.Errorf("the session was told of networks (-want +got):\n%s", diff)
		}
		tracker.DispatchersChanged()
		if sess.members != 1 {
			t.Errorf("the session was told of dispatchers %d times", sess.members)
		}
		sess.close(tracker)
		s.want("n1", away)
		change("node whose worker may come back")
		time.Sleep(4 * time.Second)
		s.want("n1", isDown)
		change("node that is down", key(statuses.Keep))
		time.Sleep(s.cfg.Timeouts.Orphan)
		change("node that was down for too long", key(statuses.NodeDown))
		s.update(func(tx *store.Tx) { s.tables.Nodes.Put(tx, "n1", &recordv1.Node{Removed: true}) })
		change("removed node", key(statuses.NodeRemoved))
		if got := s.record("n1"); got != nil {
			t.Errorf("record of a removed node is %v", got)
		}
	})
}

func TestPeriodFollowsSettingsAndLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.cfg.Periods = NewPeriods(period, 2, s.store, s.tables)
		ids := nodesOfOneShard(4)
		tracker := s.tracker(ids[0])
		first := s.mustConnect(tracker, ids[0])
		for _, id := range ids[1:] {
			s.mustConnect(tracker, id)
		}
		if first.period != period {
			t.Errorf("period is %s before a heartbeat, want %s", first.period, period)
		}
		first.heartbeat(tracker)
		if first.period != 2*period {
			t.Errorf("period with twice as many workers is %s, want %s", first.period, 2*period)
		}
		told := first.told
		s.update(func(tx *store.Tx) {
			s.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: &musterv1.ClusterSpec{
				Dispatcher: &musterv1.DispatcherConfig{HeartbeatPeriod: durationpb.New(5 * time.Second)},
			}})
		})
		if first.period != 10*time.Second {
			t.Errorf("period with another setting is %s, want 10s", first.period)
		}
		s.update(func(tx *store.Tx) { s.tables.Nodes.Put(tx, ids[0], &recordv1.Node{}) })
		if first.told != told+1 {
			t.Errorf("the session was told of changed settings %d times, want once", first.told-told)
		}
	})
}

// After a pause of the process, a node's record changes only if the shard still
// belongs to this replica.
func TestPausedProcessConfirmsItsOwnership(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"shard is kept": false, "shard is lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t)
				tracker := s.tracker("n1")
				sess := s.mustConnect(tracker, "n1")
				sess.live(tracker, 10*time.Second)
				s.want("n1", ready)
				want := away
				if lost {
					want = ready
					s.loseLocks()
				}
				s.cfg.Pauses.Suspect()
				sess.close(tracker)
				time.Sleep(time.Second)
				s.want("n1", want)
			})
		})
	}
}

func TestCloseEndsSessionsAndLeavesRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tracker := s.tracker("n1")
		sess := s.mustConnect(tracker, "n1")
		s.want("n1", ready)
		lost := errors.New("shard is lost")
		tracker.Close(lost, nil)
		if err := sess.end(); !errors.Is(err, lost) {
			t.Errorf("session ended with %v, want %v", err, lost)
		}
		tracker.Detach(sess, Closed)
		s.want("n1", ready)
		if len(s.cfg.Lag.trackers) != 0 {
			t.Error("a closed tracker is still part of the lag")
		}
	})
}
