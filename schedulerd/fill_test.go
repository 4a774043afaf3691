package schedulerd_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// TestLargeServiceNodeByNode has the tasks of a large service come in parts, as they
// are made: each node gets its share at once, neighbours of one shard of the store
// together, and in the end all have the same.
func TestLargeServiceNodeByNode(t *testing.T) {
	const nodes, share, parts = 240, 5, 4
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.nodes(nodes)
		c.large("web", nodes*share, nil)
		c.schedule("s1")
		for part := range parts {
			c.tasks("web", part*nodes*share/parts, nodes*share/parts)
			shards, short := map[int]bool{}, 0
			got := c.expectAssigned((part + 1) * nodes * share / parts)
			for node, n := range got {
				shards[store.ShardOf(node)] = true
				if n != share {
					short++
				}
			}
			// One node got the rest of a part.
			if short > 1 {
				t.Errorf("after part %d %d of %d nodes have another number of tasks than %d", part+1, short, len(got), share)
			}
			if most := (part+1)*store.Shards/parts + 2; len(shards) > most {
				t.Errorf("after part %d nodes of %d shards have tasks, want at most %d", part+1, len(shards), most)
			}
		}
		// Neighbouring slots are not on one node, for an update takes them together.
		last := map[string]uint64{}
		for _, a := range slices.SortedFunc(c.tables.Assignments.Scan(c.store.Snapshot(), ""), func(a, b store.Entry[*recordv1.Assignment]) int {
			return cmp.Compare(a.Value.Slot, b.Value.Slot)
		}) {
			node, _, _ := state.SplitKey(a.Key)
			if before, ok := last[node]; ok && a.Value.Slot-before < nodes/parts/2 {
				t.Errorf("slots %d and %d are both on node %s", before, a.Value.Slot, node)
			}
			last[node] = a.Value.Slot
		}
	})
}

// TestTasksThatFinishAreSpread has tasks of a large service come in parts, each when
// the former has finished for good: all nodes get some.
func TestTasksThatFinishAreSpread(t *testing.T) {
	const nodes, share, parts = 240, 5, 4
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.nodes(nodes)
		c.large("web", nodes*share, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
		c.schedule("s1")
		for part := range parts {
			c.tasks("web", part*nodes*share/parts, nodes*share/parts)
			if got := c.expectAssigned((part + 1) * nodes * share / parts); len(got) != nodes {
				t.Errorf("after part %d %d nodes have tasks, want all %d", part+1, len(got), nodes)
			}
			c.update(func(tx *store.Tx) {
				for a := range c.tables.Assignments.Scan(tx, "") {
					c.tables.Statuses.Put(tx, a.Key, &recordv1.Status{State: musterv1.TaskState_COMPLETE})
				}
			})
			synctest.Wait()
		}
	})
}

// nodes makes so many nodes.
func (c *cluster) nodes(n int) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		for i := range n {
			c.tables.NodeStates.Put(tx, fmt.Sprint("n", i), &recordv1.NodeState{
				State: musterv1.NodeStatus_READY,
				Description: &musterv1.NodeDescription{
					Resources: &musterv1.Resources{NanoCpus: 64e9},
					Executors: []*musterv1.ExecutorDescription{{Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}}},
				},
			})
		}
	})
}

// large writes a service of so many tasks, none of which is made yet.
func (c *cluster) large(id string, replicas uint64, restart *musterv1.RestartPolicy) {
	c.t.Helper()
	task := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}, Restart: restart}
	digest, err := state.Digest(task)
	if err != nil {
		c.t.Fatal(err)
	}
	c.update(func(tx *store.Tx) {
		c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: task})
		c.tables.Services.Put(tx, id, &recordv1.Service{TaskDigest: digest, Spec: &musterv1.ServiceSpec{
			Name: id, Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}},
		}})
	})
}

// tasks makes tasks of a service, of consecutive slots.
func (c *cluster) tasks(service string, after, count int) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		e, _ := c.tables.Services.Get(tx, service)
		for i := range count {
			slot := uint64(after + i + 1)
			c.tables.Tasks.Put(tx, state.TaskKey(service, slot, "", fmt.Sprintf("%s-%d", service, slot)), &recordv1.Task{
				Slot: slot, SpecDigest: e.Value.TaskDigest, DesiredState: musterv1.TaskState_RUNNING,
			})
		}
	})
}

// expectAssigned waits until so many tasks are assigned, and returns how many by node.
func (c *cluster) expectAssigned(want int) map[string]int {
	c.t.Helper()
	synctest.Wait()
	got, n := c.assigned(), 0
	for _, tasks := range got {
		n += tasks
	}
	if n != want {
		c.t.Fatalf("%d tasks are assigned, want %d", n, want)
	}
	return got
}
