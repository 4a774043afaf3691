package schedulerd_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// placed returns the node of each assigned task.
func (c *cluster) placed() map[string]string {
	nodes := map[string]string{}
	for a := range c.tables.Assignments.Scan(c.store.Snapshot(), "") {
		node, _, task := state.SplitKey(a.Key)
		nodes[task] = node
	}
	return nodes
}

// Tables are followed each for itself. A scheduler that has seen assignments
// before the tasks that they are of must not take these tasks to be gone, neither
// while they are late nor afterwards.
func TestTasksThatAreSeenLateKeepTheirNodes(t *testing.T) {
	for _, late := range []bool{true, false} {
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				defer c.close()
				for n := range 4 {
					c.node(fmt.Sprintf("n%d", n), 10)
				}
				stop := c.schedule("s1")
				time.Sleep(time.Second)
				slow := kvfault.New(c.kv)
				arrive := slow.Inject(kvfault.Fault{Op: kvfault.List, Prefix: daemon.Prefix + "/tasks/h/", Hang: true})
				defer arrive()
				defer c.scheduleOver(slow, "s2")()
				time.Sleep(time.Second)
				for s := range 10 {
					c.service(fmt.Sprintf("service%d", s), 1, 0)
				}
				time.Sleep(5 * time.Second)
				before := c.placed()
				if len(before) == 0 || len(before) == 10 {
					t.Fatalf("%d of 10 tasks have nodes; each scheduler should have a share", len(before))
				}
				if !late {
					arrive()
					time.Sleep(time.Second)
					before = c.placed()
				}
				// From here on every change of an assignment is seen as it happens.
				changed := make(chan string, 100)
				c.wg.Go(func() {
					defer close(changed)
					for seen := c.store.Snapshot(); ; {
						next, err := c.store.Wait(c.ctx, seen, c.tables.Assignments)
						if err != nil {
							return
						}
						for ch := range c.tables.Assignments.Changes(seen, next) {
							if ch.Old != nil {
								changed <- ch.Old.Key
							}
						}
						seen = next
					}
				})
				stop()
				time.Sleep(5 * time.Second)
				arrive()
				time.Sleep(5 * time.Second)
				after := c.placed()
				if len(after) != 10 {
					t.Errorf("%d of 10 tasks have nodes in the end", len(after))
				}
				for task, node := range before {
					if after[task] != node {
						t.Errorf("task %s was on %s, and is on %q", task, node, after[task])
					}
				}
				c.stop()
				for key := range changed {
					t.Errorf("assignment %s was taken away", key)
				}
			})
		})
	}
}

// version is one of a scheduler, by the tables in which it keeps fences.
type version struct {
	name               string
	fences, placements bool
}

// versions are those that can meet during an upgrade.
func versions() []version {
	return []version{
		{"before v0.1.0", false, true},
		{"v0.1.0", true, true},
		{"after v0.1.0", true, false},
	}
}

// otherScheduler writes the fences of all shards, as a scheduler of a version does that
// acquires them.
func (c *cluster) otherScheduler(v version) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		fences, formerFences := c.fences(tx)
		if len(fences) != store.Shards || len(formerFences) != store.Shards {
			c.t.Errorf("%d fences and %d of the former version, want %d of each", len(fences), len(formerFences), store.Shards)
		}
		for key, f := range fences {
			if v.fences {
				c.tables.SchedulerFences.Put(tx, key, &recordv1.SchedulerFence{Holder: "sleeper", Term: f.Term + 1})
			}
		}
		for key := range formerFences {
			if v.placements {
				c.tables.Placements.Put(tx, key, &recordv1.Placement{Reason: "sleeper"})
			}
		}
	})
}

// fences returns the fences by key: those of this version, and the holders in those
// of versions before v0.1.0.
func (c *cluster) fences(r store.Reader) (map[string]*recordv1.SchedulerFence, map[string]string) {
	fences, former := map[string]*recordv1.SchedulerFence{}, map[string]string{}
	for f := range c.tables.SchedulerFences.Scan(r, "") {
		fences[f.Key] = f.Value
	}
	for p := range c.tables.Placements.Scan(r, "") {
		if strings.HasPrefix(p.Key, "fence") && !strings.Contains(p.Key, "/") {
			former[p.Key] = p.Value.Reason
		}
	}
	return fences, former
}

// A scheduler that was paused while it gained a shard may write its fence long
// after another has the shard. The other one must not be fenced off for good.
func TestFenceIsAcquiredAgain(t *testing.T) {
	for _, other := range versions() {
		t.Run(other.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				defer c.close()
				c.schedule("s1")
				c.node("n1", 40)
				c.service("a", 1, 0)
				c.expect("before", map[string]int{"n1": 1})
				c.otherScheduler(other)
				c.service("b", 1, 0)
				c.expect("after", map[string]int{"n1": 2})
				holders := map[string]bool{}
				fences, formerFences := c.fences(c.store.Snapshot())
				for key, f := range fences {
					want := uint64(2)
					if other.fences {
						want++
					}
					if f.Term != want {
						t.Errorf("fence %s has term %d, want %d", key, f.Term, want)
					}
					holders[f.Holder] = true
				}
				for key, holder := range formerFences {
					if !strings.HasPrefix(holder, "s1/") || !holders[holder] {
						t.Errorf("fence %s of the former version names %q, want what a fence names", key, holder)
					}
				}
			})
		})
	}
}

// A scheduler must not assign while a shard's fence names another one, be that of a
// version that knows its own table or of one that keeps fences among the placements.
func TestFencedSchedulerAssignsNothing(t *testing.T) {
	for _, other := range versions() {
		t.Run(other.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				defer c.close()
				c.node("n1", 40)
				cut := kvfault.New(c.kv)
				c.scheduleOver(cut, "s1")
				c.service("a", 1, 0)
				c.expect("before", map[string]int{"n1": 1})
				// It cannot write fences, and so does not get the shards back.
				mend := cut.Inject(kvfault.Fault{
					Op: kvfault.Txn, Prefix: daemon.Prefix + "/placements/p/", Err: kv.ErrUnavailable,
					When: func(call kvfault.Call) bool { return call.Writes },
				})
				c.otherScheduler(other)
				c.service("b", 1, 0)
				c.expect("while another scheduler holds the shards", map[string]int{"n1": 1})
				mend()
				c.expect("when it has them again", map[string]int{"n1": 2})
			})
		})
	}
}

// What a scheduler that died said of services that are gone is taken back.
func TestExplanationsOfGoneServicesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.update(func(tx *store.Tx) {
			c.tables.Placements.Put(tx, state.PlacementKey("gone", []byte{1}), &recordv1.Placement{Pending: 1, Reason: "no nodes"})
		})
		stop := c.schedule("s1")
		time.Sleep(5 * time.Second)
		if got := c.reason("gone"); got != "" {
			t.Errorf("it is still said of a service that is gone: %s", got)
		}
		// The same while the scheduler has been running for long.
		defer c.schedule("s2")()
		time.Sleep(time.Second)
		c.update(func(tx *store.Tx) {
			for n := range 10 {
				c.tables.Placements.Put(tx, state.PlacementKey(fmt.Sprintf("gone%d", n), []byte{1}), &recordv1.Placement{Pending: 1, Reason: "no nodes"})
			}
		})
		stop()
		time.Sleep(5 * time.Second)
		for n := range 10 {
			if got := c.reason(fmt.Sprintf("gone%d", n)); got != "" {
				t.Errorf("it is still said of gone%d: %s", n, got)
			}
		}
	})
}

// A scheduler that hears late that a node is drained must not assign to it all the
// same: the orchestrator would take each task away again.
func TestNodesThatAreDrainedUnseenGetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.node("n1", 40)
		c.node("n2", 40)
		late := kvfault.New(c.kv)
		defer c.scheduleOver(late, "s1")()
		time.Sleep(time.Second)
		defer late.Inject(kvfault.Fault{Op: kvfault.List, Prefix: daemon.Prefix + "/nodes/h/", Hang: true})()
		// The list that waits already still tells of one change.
		for _, a := range []musterv1.NodeSpec_Availability{musterv1.NodeSpec_ACTIVE, musterv1.NodeSpec_DRAIN} {
			c.update(func(tx *store.Tx) {
				c.tables.Nodes.Put(tx, "n1", &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: a}})
			})
			time.Sleep(10 * time.Millisecond)
		}
		c.service("a", 4, 0)
		c.expect("of two nodes one is drained", map[string]int{"n2": 4})
	})
}
