package apid_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (c *cluster) specs() int {
	n := 0
	for range c.tables.Specs.Scan(c.store.Snapshot(), "") {
		n++
	}
	return n
}

func TestSweepRemovesSpecsThatNothingUses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := a.create(webSpec("web"))
		task := ""
		for i := range 4 {
			spec := proto.CloneOf(s.Spec)
			spec.Task.GetContainer().Image = fmt.Sprintf("nginx:%d", i)
			up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: spec})
			if err != nil {
				t.Fatal(err)
			}
			s = up.Service
			if i == 0 {
				task = c.task(s, 1, nil)
			}
		}
		// The current one, the one before, and the one of a task.
		eventually(t, "three specs are left", func() bool { return c.specs() == 3 })
		got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: task})
		if err != nil || got.Task.Spec.GetContainer().GetImage() != "nginx:0" {
			t.Errorf("task: %v, %v", got, err)
		}
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "one spec is left", func() bool { return c.specs() == 1 })
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey(s.Id, 1, "", task)) })
		eventually(t, "no spec is left", func() bool { return c.specs() == 0 })
	})
}

// quickSweep removes what is unused soon after, so that the sweep meets requests.
func quickSweep(cfg *apid.Config) { cfg.Sweep, cfg.SpecGrace = time.Millisecond, 5*time.Millisecond }

// A service may begin to use a spec at the moment when the sweep removes it.
func TestSweepNeverTakesASpecFromAService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(quickSweep), c.apid(quickSweep)}
		c.spreadTransactions()
		swept := 0
		for i := range 100 {
			a := replicas[i%2]
			s := a.create(webSpec("web"))
			if s.Spec.Task == nil {
				t.Fatal("the service has no spec")
			}
			// The sweep may have begun before the service was there.
			time.Sleep(5 * time.Millisecond)
			settled(t, "the spec is there", func() bool {
				sn := c.store.Snapshot()
				e, _ := c.tables.Services.Get(sn, s.Id)
				_, ok := c.tables.Specs.Get(sn, state.SpecKey(e.Value.GetTaskDigest()))
				return ok
			})
			if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(20 * time.Millisecond))
			if synctest.Wait(); c.specs() == 0 {
				swept++
			}
		}
		if swept == 0 || swept == 100 {
			t.Errorf("the spec was removed in %d of 100 rounds, want some", swept)
		}
		eventually(t, "no spec is left", func() bool { return c.specs() == 0 })
	})
}

// TestRemovedNodeIsRemembered waits until long after nothing else is left of the node: its
// worker must not come back under the same id.
func TestRemovedNodeIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid(func(cfg *apid.Config) { cfg.Sweep = time.Second })
		c.node("n1", "alpha")
		if _, err := a.RemoveNode(t.Context(), &musterv1.RemoveNodeRequest{Node: "n1", Force: true}); err != nil {
			t.Fatal(err)
		}
		c.update(func(tx *store.Tx) { c.tables.NodeStates.Delete(tx, "n1") })
		time.Sleep(time.Minute)
		settled(t, "the removal is remembered", func() bool {
			e, ok := c.tables.Nodes.Get(c.store.Snapshot(), "n1")
			return ok && e.Value.Removed
		})
	})
}
