package apid_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/testwait"
)

func quickSweep(cfg *apid.Config) {
	cfg.Sweep, cfg.SpecGrace, cfg.TombstoneGrace = 10*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
}

func (c *cluster) specs() int {
	n := 0
	for range c.tables.Specs.Scan(c.store.Snapshot(), "") {
		n++
	}
	return n
}

func TestSweepRemovesSpecsThatNothingUses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.apid(quickSweep)
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
			testwait.True(t, "the update is seen", func() bool {
				e, ok := c.tables.Services.Get(c.store.Snapshot(), s.Id)
				return ok && e.Version == s.Meta.Version
			})
			task = c.task(s, 1, nil)
		}
	}
	// The current one, the one before, and the one of a task.
	testwait.True(t, "three specs are left", func() bool { return c.specs() == 3 })
	got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: task})
	if err != nil || got.Task.Spec.GetContainer().GetImage() != "nginx:0" {
		t.Errorf("task: %v, %v", got, err)
	}
	if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, "one spec is left", func() bool { return c.specs() == 1 })
	c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey(s.Id, 1, "", task)) })
	testwait.True(t, "no spec is left", func() bool { return c.specs() == 0 })
}

// A service may come to use a spec at the very moment when it is swept away.
func TestSweepNeverTakesASpecFromAService(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	replicas := []*api{c.apid(quickSweep), c.apid(quickSweep)}
	for i := range 40 {
		a := replicas[i%2]
		s := a.create(webSpec("web"))
		if s.Spec.Task == nil {
			t.Fatal("the service has no spec")
		}
		testwait.True(t, "the service is seen", func() bool {
			_, ok := c.tables.Services.Get(c.store.Snapshot(), s.Id)
			return ok
		})
		sn := c.store.Snapshot()
		e, _ := c.tables.Services.Get(sn, s.Id)
		testwait.True(t, "the spec is there", func() bool {
			_, ok := c.tables.Specs.Get(c.store.Snapshot(), state.SpecKey(e.Value.TaskDigest))
			return ok
		})
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			testwait.True(t, "no spec is left", func() bool { return c.specs() == 0 })
		}
	}
}

func TestSweepForgetsRemovedNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.apid(quickSweep)
	c.node("n1", "alpha")
	testwait.True(t, "the node is there", func() bool {
		_, err := a.GetNode(t.Context(), &musterv1.GetNodeRequest{Node: "n1"})
		return err == nil
	})
	if _, err := a.RemoveNode(t.Context(), &musterv1.RemoveNodeRequest{Node: "n1", Force: true}); err != nil {
		t.Fatal(err)
	}
	removed := func() bool {
		e, ok := c.tables.Nodes.Get(c.store.Snapshot(), "n1")
		return ok && e.Value.Removed
	}
	testwait.True(t, "the removal is seen", removed)
	c.update(func(tx *store.Tx) { c.tables.Assignments.Put(tx, "n1/s/t", &recordv1.Assignment{}) })
	c.update(func(tx *store.Tx) { c.tables.NodeStates.Delete(tx, "n1") })
	if !removed() {
		t.Error("the node is forgotten while it still has an assignment")
	}
	c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, "n1/s/t") })
	testwait.True(t, "the node is forgotten", func() bool {
		_, ok := c.tables.Nodes.Get(c.store.Snapshot(), "n1")
		return !ok
	})
}
