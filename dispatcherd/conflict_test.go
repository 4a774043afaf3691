package dispatcherd

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// TestOwnSessionIsReplaced checks that of one worker process the newest session
// counts, at once.
func TestOwnSessionIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		first := c.worker("n1", d.address)
		c.wantNode("n1", ready)
		second := c.worker("n1", d.address)
		if err := first.ended(); status.Code(err) != codes.Aborted {
			t.Fatalf("first session ended with %v, want ABORTED", err)
		}
		second.live(10 * time.Second)
		c.wantNode("n1", ready)
		if second.ended() != nil {
			t.Fatalf("second session: %v", second.ended())
		}
		if n := d.nodes.Periods.Connected(); n != 1 {
			t.Errorf("%d sessions are counted, want 1", n)
		}
	})
}

// TestTwoWorkersWithOneIdentity checks that who has the session keeps it as long
// as it lives, however often another comes, and that the other is told who and
// why, gets no tasks, and takes over once the first is gone.
func TestTwoWorkersWithOneIdentity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) { c.assign(tx, "n1", "s1", "t1", 1) })
		synctest.Wait()
		first := c.workerAs("n1", "one", d.address)
		c.wantNode("n1", ready)
		for range 5 {
			began := time.Now()
			second := c.workerAs("n1", "two", d.address)
			for second.ended() == nil && time.Since(began) < time.Minute {
				first.live(time.Second)
			}
			if took := time.Since(began); took > d.cfg.HeartbeatPeriod {
				t.Errorf("the second worker is refused after %s", took)
			}
			err := second.ended()
			if status.Code(err) != codes.AlreadyExists {
				t.Fatalf("second session ended with %v, want ALREADY_EXISTS", err)
			}
			for _, want := range []string{"n1 is another worker", "n1.example", "bufconn", "instance one", "empty data directory"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the second worker is told %q, which lacks %q", err, want)
				}
			}
			if welcomed(second) != nil || len(second.tasks()) != 0 {
				t.Error("a worker that is refused was told of tasks")
			}
			first.live(3 * d.cfg.HeartbeatPeriod)
		}
		if first.ended() != nil || c.nodeState("n1").InstanceId != "one" {
			t.Fatalf("first session: %v; record is %v", first.ended(), c.nodeState("n1"))
		}
		if got := c.nodeState("n1").Message; !strings.Contains(got, `a second worker claims this node's id and is refused: host "n1.example"`) {
			t.Errorf("the node's message is %q", got)
		}
		first.live(6 * time.Minute)
		if got := c.nodeState("n1"); got.Message != "" || got.State != ready {
			t.Errorf("record of a node without a rival is %v", got)
		}
		// The first dies. From the same machine, a successor is let in at once.
		first.hangUp()
		synctest.Wait()
		second := c.workerAs("n1", "two", d.address)
		if got := second.tasks(); len(got) != 1 || c.nodeState("n1").InstanceId != "two" {
			t.Errorf("successor has %v; record is %v", got, c.nodeState("n1"))
		}
	})
}

// TestSuccessorOfASilentWorker checks that a worker whose predecessor lost its
// machine, so that nothing closed its connection, comes in before the node would
// be down.
func TestSuccessorOfASilentWorker(t *testing.T) {
	t.Parallel()
	for _, silent := range []time.Duration{10 * time.Millisecond, 3 * time.Second, 5900 * time.Millisecond} {
		t.Run(silent.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d := c.dispatcher("d1")
				synctest.Wait()
				first := c.workerAs("n1", "one", d.address)
				c.wantNode("n1", ready)
				since := c.nodeState("n1").Since
				time.Sleep(silent)
				began := time.Now()
				second := c.workerAs("n1", "two", d.address)
				// It does not wait forever, and comes again.
				time.Sleep(time.Second)
				second.hangUp()
				second = c.workerAs("n1", "two", d.address)
				for welcomed(second) == nil && time.Since(began) < time.Minute {
					time.Sleep(10 * time.Millisecond)
				}
				if took := time.Since(began); took > 2*d.cfg.HeartbeatPeriod+50*time.Millisecond {
					t.Errorf("the successor is let in after %s", took)
				}
				if err := first.ended(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "instance two") {
					t.Errorf("the first session ended with %v, want ABORTED that names the other", err)
				}
				second.live(10 * time.Second)
				if got := c.nodeState("n1"); got.State != ready || got.Since != since || got.InstanceId != "two" {
					t.Errorf("record is %v, want READY all the time since %d", got, since)
				}
			})
		})
	}
}

// TestOnlyOneOfManyWorkersIsTheNode starts several workers with one node id at once.
// Whether the holder of the session is heard or silent, one worker is the node within
// the time of a claim, and all others are refused.
func TestOnlyOneOfManyWorkersIsTheNode(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		for _, number := range []int{2, 3, 5} {
			t.Run(fmt.Sprintf("silent=%v/%d", silent, number), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := newCluster(t, false)
					d := c.dispatcher("d1")
					synctest.Wait()
					holder := c.workerAs("n1", "holder", d.address)
					c.wantNode("n1", ready)
					since := c.nodeState("n1").Since
					time.Sleep(10 * time.Millisecond)
					began := time.Now()
					others := map[string]*worker{}
					for i := range number - 1 {
						time.Sleep(30 * time.Millisecond)
						name := fmt.Sprintf("other-%d", i+1)
						others[name] = c.workerAs("n1", name, d.address)
					}
					deadline := d.cfg.HeartbeatPeriod + 50*time.Millisecond
					if silent {
						time.Sleep(2*d.cfg.HeartbeatPeriod + 200*time.Millisecond - time.Since(began))
						holder = nil
						for name, w := range others {
							if welcomed(w) == nil {
								continue
							}
							if holder != nil {
								t.Fatal("two workers are welcome")
							}
							holder = w
							delete(others, name)
						}
						if holder == nil {
							t.Fatalf("no worker is the node %s after the holder fell silent", time.Since(began))
						}
						began = time.Now()
					}
					holder.live(deadline - time.Since(began))
					for name, w := range others {
						err := w.ended()
						if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "n1 is another worker") {
							t.Errorf("%s of %d workers: %v, want ALREADY_EXISTS with the reason", name, number, err)
						}
						if welcomed(w) != nil {
							t.Errorf("%s is welcome too", name)
						}
					}
					holder.live(10 * time.Second)
					if got := c.nodeState("n1"); holder.ended() != nil || got.State != ready || got.Since != since {
						t.Errorf("record is %v, and the holder's session ended with %v; want READY all the time since %d", got, holder.ended(), since)
					}
				})
			})
		}
	}
}

// TestIdentityOutlivesItsDispatcher checks that at the next dispatcher, too, the
// node is the worker's that had it, and a second one stays refused.
func TestIdentityOutlivesItsDispatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d1 := c.dispatcher("d1")
		synctest.Wait()
		first := c.workerAs("n1", "one", d1.address)
		c.wantNode("n1", ready)
		d1.kill()
		first.hangUp()
		d2 := c.dispatcher("d2")
		time.Sleep(time.Second)
		if shard, _ := d2.owned.of("n1"); shard == nil {
			t.Fatal("the second dispatcher does not own the shard")
		}
		first = c.workerAs("n1", "one", d2.address)
		if welcomed(first) == nil {
			t.Error("the worker that had the node is not welcome")
		}
		second := c.workerAs("n1", "two", d2.address)
		first.live(5 * time.Second)
		if status.Code(second.ended()) != codes.AlreadyExists {
			t.Errorf("the other is told %v", second.ended())
		}
		c.wantNode("n1", musterv1.NodeStatus_READY)
	})
}
