package schedulerd_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// nodeOn writes a node whose worker shares a machine with 4 cores.
func (c *cluster) nodeOn(machine, id string, s musterv1.NodeStatus_State) {
	c.t.Helper()
	resources := &musterv1.Resources{NanoCpus: 4e9, MemoryBytes: 1 << 40}
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: s,
			Description: &musterv1.NodeDescription{
				Resources: resources, Machine: &musterv1.Machine{Id: machine, Shared: resources},
				Executors: []*musterv1.ExecutorDescription{{Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}}},
			},
		})
	})
}

// placedOn is how many tasks the nodes of a machine have been given in all.
func (c *cluster) placedOn(nodes ...string) (n int) {
	for _, id := range nodes {
		n += c.assigned()[id]
	}
	return n
}

// TestNodesOfOneMachineShareWhatItHas: two schedulers give the nodes of a machine at
// most as many tasks as it has cores, and a host port to one task.
func TestNodesOfOneMachineShareWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.schedule("s2")
		for _, id := range []string{"n1", "n2", "n3"} {
			c.nodeOn("m", id, musterv1.NodeStatus_READY)
		}
		// Many services, so that both schedulers have some.
		for i := range 6 {
			c.service(fmt.Sprint("web", i), 2, 8080)
		}
		c.settle()
		if n := c.placedOn("n1", "n2", "n3"); n != 1 {
			t.Errorf("%d tasks with the same host port were placed on one machine, want 1", n)
		}
		for i := range 6 {
			c.service(fmt.Sprint("plain", i), 2, 0)
		}
		c.settle()
		if n := c.placedOn("n1", "n2", "n3"); n != 4 {
			t.Errorf("%d tasks of a core each were placed on a machine with 4 cores, want 4", n)
		}
		c.nodeOn("other", "n4", musterv1.NodeStatus_READY)
		c.settle()
		if n := c.placedOn("n4"); n != 4 {
			t.Errorf("%d tasks on another machine, want 4", n)
		}
	})
}

// TestDeadNodeLeavesMachineToOthers: what a node held that is down does not keep its
// machine from a worker that was set up again.
func TestDeadNodeLeavesMachineToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.nodeOn("m", "old", musterv1.NodeStatus_READY)
		c.service("web", 1, 8080)
		c.expect("the first worker", map[string]int{"old": 1})
		c.nodeOn("m", "old", musterv1.NodeStatus_DOWN)
		c.nodeOn("m", "new", musterv1.NodeStatus_READY)
		c.service("next", 1, 8080)
		c.expect("the second worker", map[string]int{"new": 1, "old": 1})
	})
}
