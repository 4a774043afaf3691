package dispatcherd

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
)

// loseLock takes the lock of a node's shard from its holder, which does not hear of
// that.
func (c *cluster) loseLock(node string) {
	c.t.Helper()
	lock := fmt.Sprintf("muster/locks/%s/%d", Subsystem, store.ShardOf(node))
	if _, err := c.kv.Txn(c.t.Context(), []kv.Op{{Verb: kv.Delete, Key: lock}}); err != nil {
		c.t.Fatal(err)
	}
}

// standStill makes the dispatcher find that its process did not run until now.
func (r *replica) standStill() { r.nodes.Pauses.Suspect() }

// TestPausedProcess lets a dispatcher's process not run for a while, at whose end
// it finds a worker's connection closed. It says so of the node if the shard is
// still its own, and nothing at all if it is not, although it has yet to hear that.
func TestPausedProcess(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"shard is kept": false, "shard is lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d := c.dispatcher("d1")
				synctest.Wait()
				w := c.worker("n1", d.address)
				w.live(10 * time.Second)
				c.wantNode("n1", ready)
				want := away
				if lost {
					want = ready
					c.loseLock("n1")
				}
				d.standStill()
				w.hangUp()
				time.Sleep(time.Second)
				c.wantNode("n1", want)
			})
		})
	}
}

// TestPausedProcessGivesNothingUp assigns a task to a node that has been down for so
// long that its tasks are given up, after its dispatcher's process did not run for a
// while. If the shard was lost meanwhile, the node may be back at another.
func TestPausedProcessGivesNothingUp(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"shard is kept": false, "shard is lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d := c.dispatcher("d1", func(cfg *Config) { cfg.OrphanAfter = time.Minute })
				c.service("svc")
				synctest.Wait()
				w := c.worker("n1", d.address)
				c.wantNode("n1", ready)
				w.hangUp()
				time.Sleep(2 * time.Minute)
				c.wantNode("n1", fallen)
				if lost {
					c.loseLock("n1")
				}
				d.standStill()
				c.update(func(tx *store.Tx) { c.assign(tx, "n1", "svc", "t1", 1) })
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if got := c.status("n1", "svc", "t1").GetState(); (got == musterv1.TaskState_ORPHANED) == lost {
					t.Errorf("the task is %s", got)
				}
			})
		})
	}
}
