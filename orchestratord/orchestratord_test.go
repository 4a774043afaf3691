package orchestratord_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func TestLifeOfAService(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b", "c")
		c.orchestrator()
		c.run(c.world)
		c.service("web", replicated(3), null(1))
		c.settle("web", 3)
		c.service("web", replicated(10), null(1))
		c.settle("web", 10)
		c.service("web", replicated(10), null(2))
		c.settle("web", 10)
		pass(6 * time.Second) // failures count for 5 s
		synctest.Wait()
		if e, _ := c.tables.Rollouts.Get(c.store.Snapshot(), "web"); e.Value.GetState() != musterv1.UpdateStatus_COMPLETED {
			t.Errorf("rollout %v", e.Value)
		}
		c.service("web", replicated(2), null(2))
		c.settle("web", 2)
		c.remove("web")
		c.settle("web", 0)
		if _, ok := c.tables.Rollouts.Get(c.store.Snapshot(), "web"); ok {
			t.Error("the rollout stays")
		}
	})
}

func TestCreationIsImmediate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a")
		c.orchestrator()
		c.run(c.world)
		synctest.Wait()
		began := time.Now()
		c.service("web", replicated(100), null(1))
		c.settle("web", 100)
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("took %v of virtual time", took)
		}
	})
}

func TestFailedTaskIsRestartedAfterItsDelay(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a")
		c.orchestrator()
		c.run(c.world)
		c.service("web", replicated(2), null(1))
		c.settle("web", 2)
		bad := c.live("web")[0]
		c.report(bad, musterv1.TaskState_FAILED)
		failed := time.Now()
		synctest.Wait()
		for _, x := range c.live("web") {
			if x.Record.Slot == bad.Record.Slot && (x.ID == bad.ID || x.Desired() != musterv1.TaskState_READY) {
				t.Errorf("replacement %s desired %v", x.ID, x.Desired())
			}
		}
		pass(5*time.Second - time.Millisecond - time.Since(failed))
		synctest.Wait()
		if c.converged("web", 2) == "" {
			t.Error("restarted before the delay was over")
		}
		pass(time.Millisecond)
		synctest.Wait()
		if why := c.converged("web", 2); why != "" {
			t.Errorf("not restarted after the delay: %s", why)
		}
	})
}

func TestNodeChanges(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b", "c")
		c.orchestrator()
		c.run(c.world)
		c.service("web", replicated(6), null(1))
		c.service("agent", global(), null(1))
		c.settle("web", 6)
		c.settle("agent", 3)

		c.node("a", musterv1.NodeStatus_DOWN, musterv1.NodeSpec_ACTIVE, nil)
		c.settle("web", 6)
		c.settle("agent", 2)
		c.node("b", musterv1.NodeStatus_READY, musterv1.NodeSpec_DRAIN, nil)
		c.settle("web", 6)
		c.settle("agent", 1)
		for _, x := range c.live("web") {
			if x.NodeID != "c" {
				t.Errorf("task on node %s", x.NodeID)
			}
		}
		c.up("a", "b", "d")
		c.settle("agent", 4)
		c.settle("web", 6)

		// A removed node leaves nothing of global services behind.
		c.update(func(tx *store.Tx) error {
			c.tables.Nodes.Put(tx, "d", &recordv1.Node{Removed: true})
			c.tables.NodeStates.Delete(tx, "d")
			return nil
		})
		c.settle("agent", 3)
		for _, x := range c.tasks("agent") {
			if x.Record.NodeId == "d" {
				t.Errorf("record of a removed node's task stays: %s", x.Key)
			}
		}
	})
}

func TestGlobalFollowsLabels(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b")
		c.orchestrator()
		c.run(c.world)
		spec := null(1)
		spec.Placement = &musterv1.Placement{Constraints: []string{"node.labels.disk==ssd"}}
		c.service("agent", global(), spec)
		c.settle("agent", 0)
		c.node("b", musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, map[string]string{"disk": "ssd"})
		c.settle("agent", 1)
		if x := c.live("agent")[0]; x.NodeID != "b" {
			t.Errorf("task on node %s", x.NodeID)
		}
		c.node("b", musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, nil)
		c.settle("agent", 0)
	})
}

// onDisks is a task spec that asks for a kind of disk.
func onDisks(kind string) *musterv1.TaskSpec {
	spec := null(1)
	spec.Placement = &musterv1.Placement{Constraints: []string{"node.labels.disk==" + kind}}
	return spec
}

func TestReplicatedFollowsLabels(t *testing.T) {
	ssd, hdd := map[string]string{"disk": "ssd"}, map[string]string{"disk": "hdd"}
	bubble(t, func(t *testing.T, c *cluster) {
		label := func(id string, a musterv1.NodeSpec_Availability, labels map[string]string) {
			c.node(id, musterv1.NodeStatus_READY, a, labels)
		}
		for _, id := range []string{"a", "b"} {
			label(id, musterv1.NodeSpec_ACTIVE, ssd)
		}
		c.up("c")
		c.orchestrator()
		c.run(c.world)
		c.service("web", replicated(4), onDisks("ssd"))
		c.service("any", replicated(3), null(1))
		c.settle("web", 4)
		c.settle("any", 3)
		elsewhere := func(id string) int {
			n := 0
			for _, x := range c.live("web") {
				if x.NodeID != id {
					n++
				}
			}
			return n
		}
		if n := elsewhere("a"); n != 2 {
			t.Fatalf("%d of 4 tasks are not on a", n)
		}
		label("a", musterv1.NodeSpec_ACTIVE, hdd)
		pass(time.Second)
		c.settle("web", 4)
		if n := elsewhere("a"); n != 4 {
			t.Errorf("%d of 4 tasks have left a", n)
		}
		for _, x := range c.tasks("any") {
			if !x.Live() {
				t.Errorf("task of another service was ended: %s", x.Record.Reason)
			}
		}
		// A paused node keeps what it has, until it is active again.
		label("b", musterv1.NodeSpec_PAUSE, hdd)
		label("a", musterv1.NodeSpec_ACTIVE, ssd)
		pass(time.Second)
		if n := elsewhere("b"); n != 0 {
			t.Errorf("%d of 4 tasks have left a paused node", n)
		}
		label("b", musterv1.NodeSpec_ACTIVE, hdd)
		pass(time.Second)
		c.settle("web", 4)
		if n := elsewhere("b"); n != 4 {
			t.Errorf("%d of 4 tasks have left b", n)
		}
	})
}

func TestLowerHistoryLimitHoldsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a")
		c.orchestrator()
		c.run(c.world)
		for i := range uint64(6) {
			c.service("web", replicated(2), null(i))
			c.settle("web", 2)
		}
		if n := len(c.tasks("web")); n != 10 {
			t.Errorf("%d records, want 10", n)
		}
		c.update(func(tx *store.Tx) error {
			c.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: &musterv1.ClusterSpec{
				Orchestration: &musterv1.OrchestrationConfig{TaskHistoryRetentionLimit: proto.Int64(1)},
			}})
			return nil
		})
		synctest.Wait()
		if n := len(c.tasks("web")); n != 2 {
			t.Errorf("%d records, want 2", n)
		}
	})
}

// The spec lies in a table of its own, which may be seen later.
func TestSpecThatComesLater(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a")
		c.orchestrator()
		c.run(c.world)
		digest, err := state.Digest(null(1))
		if err != nil {
			t.Fatal(err)
		}
		c.update(func(tx *store.Tx) error {
			c.tables.Services.Put(tx, "web", &recordv1.Service{Spec: replicated(2), TaskDigest: digest, SpecVersion: 1})
			return nil
		})
		pass(time.Second)
		c.update(func(tx *store.Tx) error {
			c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: null(1)})
			return nil
		})
		c.settle("web", 2)
	})
}

func TestJobsAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.orchestrator()
		c.service("job", &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_GlobalJob{GlobalJob: &musterv1.GlobalJob{}}}, null(1))
		synctest.Wait()
		if n := len(c.tasks("job")); n != 0 {
			t.Errorf("%d tasks", n)
		}
	})
}

// What was removed while no orchestrator was there is removed.
func TestCatchesUp(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b")
		c.run(c.world)
		stop := c.orchestrator()
		c.service("gone", replicated(3), null(1))
		c.service("stays", replicated(3), null(1))
		c.settle("gone", 3)
		c.service("gone", replicated(3), null(2))
		c.settle("gone", 3)
		c.settle("stays", 3)
		stop()
		before := c.live("stays")
		c.remove("gone")
		c.orchestrator()
		c.settle("gone", 0)
		if _, ok := c.tables.Rollouts.Get(c.store.Snapshot(), "gone"); ok {
			t.Error("the rollout stays")
		}
		c.settle("stays", 3)
		for i, x := range c.live("stays") {
			if x.ID != before[i].ID || x.Version != before[i].Version {
				t.Error("a restart of the orchestrator has changed a task")
			}
		}
	})
}

// TestTasksLeaveNodesThatShrink has a worker come back with fewer CPUs than its tasks
// reserve: those that were assigned last leave it, of any service, and no others.
func TestTasksLeaveNodesThatShrink(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		size := func(id string, cores int64) { c.sized(id, &musterv1.Resources{NanoCpus: cores * 1e9}) }
		size("a", 4)
		for range 2 {
			c.orchestrator()
		}
		c.run(c.world)
		core := null(1)
		core.Resources = &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 1e9}}
		// Of several shards, so that both orchestrators have some.
		services := []string{"s1", "s2", "s3", "s4"}
		first := map[string]string{}
		for _, id := range services {
			c.service(id, replicated(1), core)
			c.settle(id, 1)
			first[id] = c.live(id)[0].ID
			pass(time.Second)
		}
		c.service("free", replicated(2), null(1))
		c.settle("free", 2)
		free := c.live("free")

		size("b", 4)
		size("a", 2)
		pass(time.Second)
		for i, id := range services {
			c.settle(id, 1)
			x := c.live(id)[0]
			if i < 2 && x.ID != first[id] {
				t.Errorf("task of %s was replaced, and there was room for it", id)
			}
			if i >= 2 && x.NodeID != "b" {
				t.Errorf("task of %s is on node %s, which has no room for it", id, x.NodeID)
			}
		}
		for i, x := range c.live("free") {
			if x.ID != free[i].ID {
				t.Errorf("task %s reserves nothing, and was replaced", free[i].ID)
			}
		}
		for _, x := range c.tasks("s4") {
			if x.ID == first["s4"] && x.Record.Reason != string(plan.ReasonCrowded) {
				t.Errorf("it says that it was replaced because %q", x.Record.Reason)
			}
		}
		// None is moved back, and none once more.
		size("a", 4)
		pass(time.Minute)
		for _, id := range services {
			if n := len(c.tasks(id)); n > 2 {
				t.Errorf("service %s has had %d tasks", id, n)
			}
		}
	})
}

// TestNodesThatAreTooSmallForATask has a task whose node shrinks wait for another.
func TestNodesThatAreTooSmallForATask(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		memory := func(id string, n int64) { c.sized(id, &musterv1.Resources{NanoCpus: 1e9, MemoryBytes: n}) }
		memory("a", 1<<30)
		c.orchestrator()
		c.run(c.world)
		spec := null(1)
		spec.Resources = &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 1e9, MemoryBytes: 1 << 30}}
		c.service("agent", global(), spec)
		c.settle("agent", 1)
		old := c.live("agent")[0].ID
		memory("a", 1<<29)
		pass(time.Minute)
		live := c.live("agent")
		if len(live) != 1 || live[0].ID == old || live[0].NodeID != "" || len(c.tasks("agent")) != 2 {
			t.Fatalf("%d tasks, of which %d live, want one that waits", len(c.tasks("agent")), len(live))
		}
		memory("a", 1<<30)
		c.settle("agent", 1)
	})
}
