package schedulerd_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// networkedNode writes a node that serves overlay networks.
func (c *cluster) networkedNode(id string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: musterv1.NodeStatus_READY,
			Description: &musterv1.NodeDescription{
				Resources: &musterv1.Resources{NanoCpus: 100e9, MemoryBytes: 1 << 40},
				Executors: []*musterv1.ExecutorDescription{{
					Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}, Capabilities: []string{"network.accepts"},
				}},
				NetworkDrivers: []*musterv1.NetworkDriverDescription{{
					Name: "overlay", Drivers: []string{"overlay"}, Health: musterv1.ExecutorDescription_HEALTHY,
				}},
			},
		})
	})
}

// network writes a network, with a subnet unless it is "".
func (c *cluster) network(id, subnet string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		c.tables.Networks.Put(tx, id, &recordv1.Network{Spec: &musterv1.NetworkSpec{Name: id}})
		if subnet == "" {
			return
		}
		l, err := addresses.Divide([]addresses.Subnet{{Prefix: netip.MustParsePrefix(subnet)}}, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		c.tables.NetworkStates.Put(tx, id, l.State())
	})
}

// TestTasksWaitForAddressesOfTheirNetwork: a full network keeps tasks waiting, and says
// so; they get nodes as soon as there are addresses.
func TestTasksWaitForAddressesOfTheirNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.node("plain", 100)
		c.networkedNode("a")
		c.networkedNode("b")
		c.network("frontend", "")
		c.service("web", 6, 0, "frontend")
		c.settle()
		if got := c.reason("web"); len(c.assigned()) > 0 || !strings.Contains(got, "network frontend is being set up and has no subnet yet on 2 nodes") ||
			!strings.Contains(got, `executor for "null" cannot connect tasks to networks (muster plugin ls says what it lacks) on 1 node`) {
			t.Errorf("assigned %v, reason %q", c.assigned(), got)
		}
		c.network("frontend", "10.1.0.0/29") // 5 blocks of one address
		// Each node has an address of its own.
		c.expect("with a subnet", map[string]int{"a": 1, "b": 2})
		if got := c.reason("web"); !strings.Contains(got, "network frontend is full: all 5 addresses are in use or reserved for other nodes on 2 nodes") {
			t.Errorf("reason %q", got)
		}
		for a := range c.tables.Assignments.Scan(c.store.Snapshot(), "") {
			if n := a.Value.Networks; len(n) != 1 || n[0] != "frontend" {
				t.Errorf("assignment %s is on networks %v", a.Key, n)
			}
		}
		// The allocator leases what the tasks need, and tasks end.
		c.update(func(tx *store.Tx) {
			for number, node := range []string{"a", "a", "b", "b", "b"} {
				c.tables.Blocks.Put(tx, state.BlockKey("frontend", uint32(number)), &recordv1.Block{NodeId: node})
			}
		})
		c.expect("with blocks", map[string]int{"a": 1, "b": 2})
		c.update(func(tx *store.Tx) {
			for a := range c.tables.Assignments.Scan(tx, "b/") {
				c.tables.Statuses.Put(tx, a.Key, &recordv1.Status{State: musterv1.TaskState_SHUTDOWN})
			}
		})
		c.expect("after the end of tasks", map[string]int{"a": 1, "b": 4})
		// Node a is gone, its task waits again, and its blocks are returned.
		c.update(func(tx *store.Tx) {
			c.tables.NodeStates.Delete(tx, "a")
			for a := range c.tables.Assignments.Scan(tx, "a/") {
				c.tables.Assignments.Delete(tx, a.Key)
			}
			for number := range uint32(2) {
				c.tables.Blocks.Delete(tx, state.BlockKey("frontend", number))
			}
		})
		c.expect("after blocks were returned", map[string]int{"b": 6})
	})
}

// TestSchedulersGiveNoNodeMoreTasksThanItHasAddresses has two schedulers place tasks at
// the same moment, neither of which has seen what the other does.
func TestSchedulersGiveNoNodeMoreTasksThanItHasAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.schedule("s2")
		c.networkedNode("a")
		c.network("back", "10.1.0.0/29") // 5 blocks of one address
		c.settle()
		for s := range 10 {
			c.service(fmt.Sprintf("service%d", s), 1, 0, "back")
		}
		c.expect("tasks for each address", map[string]int{"a": 4})
	})
}

// TestTasksWithoutAddressAreRefused has another scheduler promise node a an address at the
// same moment. The allocator gives the last block to node b.
func TestTasksWithoutAddressAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status *recordv1.Status
		want   string
	}{
		{"not started", &recordv1.Status{State: musterv1.TaskState_PREPARING}, "network back has no address left"},
		{"has an address", &recordv1.Status{State: musterv1.TaskState_READY, Networks: []*musterv1.NetworkAttachment{{NetworkId: "back"}}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				defer c.close()
				c.schedule("s1")
				c.networkedNode("a")
				c.networkedNode("b")
				c.network("back", "10.1.0.0/29") // 5 blocks of one address
				c.service("web", 3, 0, "back")
				c.expect("first", map[string]int{"a": 1, "b": 2})
				c.service("late", 1, 0, "back")
				c.settle()
				late := state.NodeTaskKey("a", "late", "late-1")
				c.update(func(tx *store.Tx) {
					c.tables.Assignments.Put(tx, late, &recordv1.Assignment{AssignedAt: time.Now().UnixMilli(), Networks: []string{"back"}})
					c.tables.Statuses.Put(tx, late, tt.status)
				})
				c.settle()
				refused := func() map[string]string {
					reasons := map[string]string{}
					for a := range c.tables.Assignments.Scan(c.store.Snapshot(), "") {
						if a.Value.Refused != "" {
							reasons[a.Key] = a.Value.Refused
						}
					}
					return reasons
				}
				if got := refused(); len(got) > 0 {
					t.Errorf("%v are refused while blocks are left", got)
				}
				c.update(func(tx *store.Tx) {
					for a := range c.tables.Assignments.Scan(tx, "") {
						if a.Key != late {
							c.tables.Statuses.Put(tx, a.Key, &recordv1.Status{State: musterv1.TaskState_RUNNING})
						}
					}
					for number, node := range []string{"a", "a", "b", "b", "b"} {
						c.tables.Blocks.Put(tx, state.BlockKey("back", uint32(number)), &recordv1.Block{NodeId: node})
					}
				})
				c.settle()
				want := map[string]string{}
				if tt.want != "" {
					want[late] = tt.want
				}
				if got := refused(); !maps.Equal(got, want) {
					t.Errorf("refused are %v, want %v", got, want)
				}
			})
		})
	}
}
