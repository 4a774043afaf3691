package dispatcherd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const (
	unknown = musterv1.NodeStatus_UNKNOWN
	ready   = musterv1.NodeStatus_READY
	away    = musterv1.NodeStatus_DISCONNECTED
	fallen  = musterv1.NodeStatus_DOWN
)

// TestSilentWorker checks that three missed heartbeats are the end, and that
// a worker that is back is back.
func TestSilentWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		w.live(time.Minute)
		w.heartbeat()
		c.wantNode("n1", ready)
		time.Sleep(5900 * time.Millisecond)
		c.wantNode("n1", ready)
		time.Sleep(200 * time.Millisecond)
		c.wantNode("n1", fallen)
		if err := w.ended(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("session of a silent worker ended with %v, want DEADLINE_EXCEEDED", err)
		}
		w = c.worker("n1", d.address)
		c.wantNode("n1", ready)
		w.live(10 * time.Second)
		c.wantNode("n1", ready)
	})
}

// TestClosedStream checks the grace of a worker whose stream closed.
func TestClosedStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", ready)
		w.hangUp()
		c.wantNode("n1", away)
		time.Sleep(2900 * time.Millisecond)
		w = c.worker("n1", d.address)
		c.wantNode("n1", ready)
		w.live(10 * time.Second)
		c.wantNode("n1", ready)
		w.hangUp()
		time.Sleep(2900 * time.Millisecond)
		c.wantNode("n1", away)
		time.Sleep(200 * time.Millisecond)
		c.wantNode("n1", fallen)
	})
}

// TestRestartingWorker checks that a worker that says so gets longer.
func TestRestartingWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", ready)
		w.goodbye(true)
		if err := w.ended(); status.Code(err) != codes.Unknown { // EOF: the call ended well
			t.Errorf("session ended with %v", err)
		}
		time.Sleep(29 * time.Second)
		c.wantNode("n1", unknown)
		w = c.workerAs("n1", "2", d.address)
		c.wantNode("n1", ready)
		w.goodbye(true)
		time.Sleep(31 * time.Second)
		c.wantNode("n1", fallen)
	})
}

// TestOrphans checks that the tasks of a node that stays down are given up,
// also if the dispatcher changes meanwhile.
func TestOrphans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// Each minute of virtual time has hundreds of timers.
		const orphanAfter = 10 * time.Minute
		if got := DefaultConfig().OrphanAfter; got != 24*time.Hour {
			t.Errorf("nodes are orphaned after %s by default, want a day", got)
		}
		soon := func(cfg *Config) { cfg.OrphanAfter = orphanAfter }
		c := newCluster(t, false)
		d := c.dispatcher("d1", soon)
		c.service("s1")
		c.update(func(tx *store.Tx) {
			for i, task := range []string{"runs", "failed", "unheard", "gone"} {
				c.assign(tx, "n1", "s1", task, uint64(i+1))
			}
		})
		synctest.Wait()
		w := c.worker("n1", d.address)
		w.report(1, reported("runs", running, 10, ""), reported("failed", musterv1.TaskState_FAILED, 10, ""), reported("gone", running, 10, ""))
		if acked(w) != 1 {
			t.Fatal("report is not acknowledged")
		}
		w.hangUp()
		time.Sleep(4 * time.Second)
		c.wantNode("n1", fallen)
		// No worker has to be told of what goes while the node is down.
		c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, "n1/s1/gone") })
		synctest.Wait()
		if got := c.status("n1", "s1", "gone"); got != nil {
			t.Fatalf("status of an assignment that is gone is %v", got)
		}
		time.Sleep(orphanAfter / 2)
		d.stop()
		c.dispatcher("d2", soon)
		time.Sleep(orphanAfter/2 - 10*time.Second)
		if got := c.status("n1", "s1", "runs").GetState(); got != running {
			t.Fatalf("task is %s before its time", got)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for task, want := range map[string]musterv1.TaskState{
			"runs": musterv1.TaskState_ORPHANED, "failed": musterv1.TaskState_FAILED, "unheard": musterv1.TaskState_ORPHANED,
		} {
			if got := c.status("n1", "s1", task).GetState(); got != want {
				t.Errorf("task %s is %s, want %s", task, got, want)
			}
		}
	})
}

// TestAssignmentGoneWhileAway checks that the status of an assignment that went
// while its worker was away goes when the worker has been told.
func TestAssignmentGoneWhileAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) { c.assign(tx, "n1", "s1", "t1", 1) })
		synctest.Wait()
		w := c.worker("n1", d.address)
		w.report(1, reported("t1", running, 10, ""))
		if acked(w) != 1 {
			t.Fatal("report is not acknowledged")
		}
		w.hangUp()
		c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, "n1/s1/t1") })
		synctest.Wait()
		if c.status("n1", "s1", "t1") == nil {
			t.Fatal("status is gone before the worker could be told")
		}
		w = c.worker("n1", d.address)
		if got := w.tasks(); len(got) != 0 || c.status("n1", "s1", "t1") != nil {
			t.Fatalf("tasks are %v, status is %v", got, c.status("n1", "s1", "t1"))
		}
	})
}

// TestRedirect checks that a worker finds its dispatcher.
func TestRedirect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d1, d2 := c.dispatcher("d1"), c.dispatcher("d2")
		time.Sleep(10 * time.Second)
		for i := range 20 {
			node := fmt.Sprintf("n%d", i)
			is, others := owner(node, d1, d2)
			if is == nil || len(others) != 1 {
				t.Fatalf("node %s has no one owner", node)
			}
			lost := c.worker(node, others[0].address)
			if got := redirected(lost); got.GetAddress() != is.address || len(got.GetDispatchers()) != 2 {
				t.Fatalf("redirect is %v, want to %s", got, is.address)
			}
			found := c.worker(node, is.address)
			if welcomed(found) == nil {
				t.Fatalf("node %s is not welcome at its own dispatcher", node)
			}
			c.wantNode(node, ready)
		}
	})
}

// A connected worker learns at once that a dispatcher has joined or left.
func TestChangedDispatchersReachWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		first := c.dispatcher("d1")
		second := c.dispatcher("d2")
		time.Sleep(10 * time.Second)
		// The third dispatcher takes some shards over. The worker's is not one of them.
		var node string
		for i := 0; node == ""; i++ {
			if id := fmt.Sprintf("n%d", i); shards.Assign([]string{"d1", "d2", "d3"}, store.Shards)[store.ShardOf(id)] == "d1" &&
				shards.Assign([]string{"d1", "d2"}, store.Shards)[store.ShardOf(id)] == "d1" {
				node = id
			}
		}
		w := c.worker(node, first.address)
		want := func(when string, addresses ...string) {
			t.Helper()
			w.live(time.Second)
			got := get(w, func(w *worker) []string { return w.dispatchers })
			if diff := cmp.Diff(addresses, got); diff != "" {
				t.Errorf("dispatchers that the worker knows %s (-want +got):\n%s", when, diff)
			}
		}
		want("after its welcome", "d1:4245", "d2:4245")
		welcome := welcomed(w)
		third := c.dispatcher("d3")
		want("after one has joined", "d1:4245", "d2:4245", "d3:4245")
		second.stop()
		want("after one has stopped", "d1:4245", "d3:4245")
		third.kill()
		want("after one was killed", "d1:4245")
		if err := w.ended(); err != nil || welcomed(w) != welcome {
			t.Errorf("session ended with %v, last welcome %v", err, welcomed(w))
		}
	})
}

// TestTakeoverOfLivingNodes checks that nodes that change their dispatcher cost
// no write, and lose nothing.
func TestTakeoverOfLivingNodes(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*replica){
		"killed":  (*replica).kill,
		"stopped": func(r *replica) { r.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				first := c.dispatcher("d1")
				c.service("s1")
				c.update(func(tx *store.Tx) {
					for i := range 20 {
						c.assign(tx, fmt.Sprintf("n%d", i), "s1", fmt.Sprintf("t%d", i), uint64(i+1))
					}
				})
				synctest.Wait()
				var workers []*worker
				for i := range 20 {
					node := fmt.Sprintf("n%d", i)
					w := c.worker(node, first.address)
					w.report(1, reported(fmt.Sprintf("t%d", i), running, 10, ""))
					workers = append(workers, w)
				}
				c.wantNode("n19", ready)
				before := c.tables.NodeStates.Sequences(c.store.Snapshot())
				statuses := c.tables.Statuses.Sequences(c.store.Snapshot())
				end(first)
				second := c.dispatcher("d2")
				time.Sleep(time.Second)
				for i, old := range workers {
					if old.ended() == nil {
						t.Fatalf("session of %s continues", old.node)
					}
					w := c.worker(old.node, second.address)
					if got := w.tasks(); len(got) != 1 {
						t.Fatalf("tasks of %s are %v", w.node, got)
					}
					w.report(1, reported(fmt.Sprintf("t%d", i), running, 10, ""))
					if acked(w) != 1 {
						t.Fatalf("report of %s is not acknowledged", w.node)
					}
					workers[i] = w
				}
				for range 40 {
					for _, w := range workers {
						w.heartbeat()
					}
					time.Sleep(time.Second)
				}
				c.wantNode("n0", ready)
				if diff := cmp.Diff(before, c.tables.NodeStates.Sequences(c.store.Snapshot())); diff != "" {
					t.Errorf("nodes that live were written:\n%s", diff)
				}
				if diff := cmp.Diff(statuses, c.tables.Statuses.Sequences(c.store.Snapshot())); diff != "" {
					t.Errorf("statuses that were known were written:\n%s", diff)
				}
			})
		})
	}
}

// TestTakeoverByOneThatLags lets a dispatcher take over that has not heard of
// what its predecessor told the workers last. It must not tell them otherwise.
func TestTakeoverByOneThatLags(t *testing.T) {
	t.Parallel()
	for _, tables := range [][]string{{"assignments"}, {"tasks"}, {"assignments", "tasks", "services", "specs", "statuses"}} {
		t.Run(strings.Join(tables, " "), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				first := c.dispatcher("d1")
				slow := kvfault.New(c.kv)
				for _, table := range tables {
					defer slow.Inject(kvfault.Fault{Op: kvfault.List, Prefix: "muster/" + table + "/h/", Hang: true})()
				}
				second := c.dispatcherOver(slow, "d2")
				time.Sleep(time.Second)
				var node string
				for i := 0; node == ""; i++ {
					if s, _ := first.owned.of(fmt.Sprintf("n%d", i)); s != nil {
						node = fmt.Sprintf("n%d", i)
					}
				}
				w := c.worker(node, first.address)
				c.service("s1")
				c.update(func(tx *store.Tx) { c.assign(tx, node, "s1", "t1", 1) })
				synctest.Wait()
				w.report(1, reported("t1", running, 10, ""))
				if acked(w) != 1 || len(w.tasks()) != 1 {
					t.Fatalf("tasks of %s are %v", node, w.tasks())
				}
				first.stop()
				time.Sleep(100 * time.Millisecond)
				again := c.worker(node, second.address)
				time.Sleep(2 * time.Second)
				if got := again.tasks(); len(got) != 1 {
					t.Errorf("after the takeover the tasks are %v", got)
				}
				if got := c.status(node, "s1", "t1").GetState(); got != running {
					t.Errorf("the task is %v", got)
				}
			})
		})
	}
}

// TestTakeoverOfLostNode checks that a node whose worker went with its
// dispatcher gets longer, and is down in the end.
func TestTakeoverOfLostNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		first := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", first.address)
		c.wantNode("n1", ready)
		first.kill()
		w.hangUp()
		c.dispatcher("d2")
		time.Sleep(4 * time.Second)
		c.wantNode("n1", ready)
		time.Sleep(2 * time.Second)
		c.wantNode("n1", unknown)
		time.Sleep(23 * time.Second)
		c.wantNode("n1", unknown)
		time.Sleep(2 * time.Second)
		c.wantNode("n1", fallen)
	})
}

// TestHandover checks that workers move when another replica joins, and that
// the leaving dispatcher says so.
func TestHandover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d1 := c.dispatcher("d1")
		synctest.Wait()
		workers := map[string]*worker{}
		for i := range 20 {
			node := fmt.Sprintf("n%d", i)
			workers[node] = c.worker(node, d1.address)
		}
		c.wantNode("n19", ready)
		d2 := c.dispatcher("d2")
		moved := 0
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			for node, w := range workers {
				err := w.ended()
				if err == nil {
					w.heartbeat()
					continue
				}
				if status.Code(err) != codes.Unavailable || redirected(w) == nil {
					t.Fatalf("session of %s ended with %v, redirect %v", node, err, redirected(w))
				}
				is, _ := owner(node, d1, d2)
				if is == nil {
					is = d2
				}
				workers[node] = c.worker(node, is.address)
				moved++
			}
			for node := range workers {
				c.wantNode(node, ready)
			}
		}
		if n := d2.nodes.Periods.Connected(); n == 0 || n+d1.nodes.Periods.Connected() != 20 || moved < n {
			t.Errorf("%d and %d sessions, %d moves", d1.nodes.Periods.Connected(), n, moved)
		}
	})
}

// TestStaleJudgement checks that a record that another dispatcher wrote by
// mistake is put right.
func TestStaleJudgement(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", ready)
		c.update(func(tx *store.Tx) {
			c.tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: fallen, Description: description("n1")})
		})
		w.heartbeat()
		c.wantNode("n1", ready)
	})
}

// TestJudgementWaitsForStore has a worker go and come back while the store is away:
// that it was down for a moment is not written afterwards, for its tasks would be
// moved for it.
func TestJudgementWaitsForStore(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*worker){
		"silent":    func(*worker) {},
		"closed":    (*worker).hangUp,
		"restarted": func(w *worker) { w.goodbye(true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d := c.dispatcher("d1")
				synctest.Wait()
				w := c.worker("n1", d.address)
				c.wantNode("n1", ready)
				seen := c.watchNode("n1")
				d.away(true)
				w.live(5 * time.Second)
				leave(w)
				time.Sleep(d.cfg.RestartGrace + 10*time.Second)
				w = c.worker("n1", d.address)
				w.live(time.Second)
				d.away(false)
				w.live(10 * time.Second)
				if states := seen(); slices.Contains(states, fallen) {
					t.Errorf("the node's record went through %v, and its worker was there when it was written", states)
				}
				c.wantNode("n1", ready)
			})
		})
	}
}

// watchNode returns a function that returns the states that a node's record has
// gone through since, and is called once.
func (c *cluster) watchNode(node string) (states func() []musterv1.NodeStatus_State) {
	before := c.store.Snapshot()
	var seen []musterv1.NodeStatus_State
	stop := c.run("watch of node "+node, func(ctx context.Context) error {
		for {
			next, err := c.store.Wait(ctx, before, c.tables.NodeStates)
			if err != nil {
				return err
			}
			for change := range c.tables.NodeStates.Changes(before, next) {
				if change.Key() == node && change.New != nil {
					seen = append(seen, change.New.Value.State)
				}
			}
			before = next
		}
	})
	return func() []musterv1.NodeStatus_State {
		stop()
		return seen
	}
}

// TestLeftoverStatus is for a dispatcher that starts: statuses without an assignment go once their worker has come.
func TestLeftoverStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		c.update(func(tx *store.Tx) {
			c.tables.NodeStates.Put(tx, "down", &recordv1.NodeState{State: fallen, Since: time.Now().UnixMilli()})
			c.tables.NodeStates.Put(tx, "up", &recordv1.NodeState{State: ready})
			for _, node := range []string{"down", "up"} {
				c.tables.Statuses.Put(tx, state.NodeTaskKey(node, "s1", "t1"), &recordv1.Status{State: running})
			}
		})
		d := c.dispatcher("d1")
		synctest.Wait()
		if c.status("down", "s1", "t1") != nil || c.status("up", "s1", "t1") == nil {
			t.Fatalf("statuses are %v and %v, want only that of the node that may be back", c.status("down", "s1", "t1"), c.status("up", "s1", "t1"))
		}
		c.worker("up", d.address)
		synctest.Wait()
		if got := c.status("up", "s1", "t1"); got != nil {
			t.Errorf("status without an assignment is %v", got)
		}
	})
}
