package schedulerd_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/schedulerd"
)

// cluster is a store in which a test plays all daemons but the scheduler.
type cluster struct {
	t      *testing.T
	kv     *embedded.KV
	tables *state.Tables
	store  *store.Store
	wg     sync.WaitGroup
	stop   context.CancelFunc
	ctx    context.Context
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, kv: s, tables: state.NewTables()}
	c.ctx, c.stop = context.WithCancel(t.Context())
	ts := c.tables
	c.store, err = store.New(store.Options{KV: s, Prefix: daemon.Prefix, Logger: zaptest.NewLogger(t)},
		ts.Services, ts.Specs, ts.Tasks, ts.Assignments, ts.Placements, ts.SchedulerFences, ts.Nodes, ts.NodeStates, ts.Statuses,
		ts.Networks, ts.NetworkStates, ts.Blocks)
	if err != nil {
		t.Fatal(err)
	}
	c.wg.Go(func() { _ = c.store.Run(c.ctx) })
	if err := c.store.Ready(c.ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// close ends everything. It is called, not left to Cleanup, for all goroutines
// of a bubble must have ended when its function returns.
func (c *cluster) close() {
	c.stop()
	c.wg.Wait()
	if err := c.kv.Close(); err != nil {
		c.t.Error(err)
	}
}

// schedule starts a scheduler and returns what stops it.
func (c *cluster) schedule(instance string) (stop func()) {
	c.t.Helper()
	return c.scheduleOver(c.kv, instance)
}

// scheduleOver starts a scheduler that sees the key space as space shows it.
func (c *cluster) scheduleOver(space kv.KV, instance string) (stop func()) {
	c.t.Helper()
	d, err := schedulerd.New(daemon.Env{
		KV: space, Prefix: daemon.Prefix, Logger: zaptest.NewLogger(c.t).Named(instance), Metrics: prometheus.NewRegistry(),
		Member:  shards.Member{Instance: instance},
		Session: func(ctx context.Context) (kv.Session, error) { return c.kv.NewSession(ctx, kv.SessionConfig{}) },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	c.wg.Go(func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			c.t.Errorf("scheduler %s: %v", instance, err)
		}
	})
	return func() {
		cancel()
		<-done
	}
}

func (c *cluster) update(fn func(tx *store.Tx)) {
	c.t.Helper()
	if err := c.store.Update(c.ctx, func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) node(id string, cores int64) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: musterv1.NodeStatus_READY,
			Description: &musterv1.NodeDescription{
				Resources: &musterv1.Resources{NanoCpus: cores * 1e9, MemoryBytes: 1 << 40},
				Executors: []*musterv1.ExecutorDescription{{Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}}},
			},
		})
	})
}

// service writes a service with a number of tasks that each reserve a core, on networks.
func (c *cluster) service(id string, replicas int, port uint32, networks ...string) {
	c.t.Helper()
	task := &musterv1.TaskSpec{
		Runtime:   &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}},
		Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 1e9}},
	}
	for _, n := range networks {
		task.Networks = append(task.Networks, &musterv1.NetworkAttachmentConfig{Target: n})
	}
	spec := &musterv1.ServiceSpec{Name: id}
	if port != 0 {
		spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{
			PublishMode: musterv1.PortConfig_HOST, PublishedPort: port, TargetPort: port,
		}}}
	}
	digest, err := state.Digest(task)
	if err != nil {
		c.t.Fatal(err)
	}
	endpoint, err := state.EndpointDigest(spec.Endpoint)
	if err != nil {
		c.t.Fatal(err)
	}
	c.update(func(tx *store.Tx) {
		c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: task})
		c.tables.Services.Put(tx, id, &recordv1.Service{Spec: spec, TaskDigest: digest})
		for slot := range uint64(replicas) {
			c.tables.Tasks.Put(tx, state.TaskKey(id, slot+1, "", fmt.Sprintf("%s-%d", id, slot+1)), &recordv1.Task{
				Slot: slot + 1, SpecDigest: digest, EndpointDigest: endpoint, DesiredState: musterv1.TaskState_RUNNING,
			})
		}
	})
}

// assigned returns the number of assignments by node, and fails if a task has
// two.
func (c *cluster) assigned() map[string]int {
	c.t.Helper()
	byNode, seen := map[string]int{}, map[string]string{}
	for a := range c.tables.Assignments.Scan(c.store.Snapshot(), "") {
		node, _, task := state.SplitKey(a.Key)
		if other, ok := seen[task]; ok {
			c.t.Errorf("task %s is assigned to both %s and %s", task, other, node)
		}
		seen[task] = node
		byNode[node]++
	}
	return byNode
}

// settle waits long enough for every retry and for explanations.
func (c *cluster) settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func (c *cluster) expect(what string, want map[string]int) {
	c.t.Helper()
	c.settle()
	got := c.assigned()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("%s: assignments %v, want %v", what, got, want)
	}
}

func (c *cluster) reason(service string) string {
	for p := range c.tables.Placements.Scan(c.store.Snapshot(), service+"/") {
		return p.Value.Reason
	}
	return ""
}

func TestSpreadAndExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.service("web", 5, 0)
		c.expect("no nodes", map[string]int{})
		if got := c.reason("web"); !strings.Contains(got, "no nodes") {
			t.Errorf("reason = %q, want one that says that there are no nodes", got)
		}
		c.node("n1", 2)
		c.node("n2", 2)
		c.expect("room for four of five", map[string]int{"n1": 2, "n2": 2})
		if got, want := c.reason("web"), "no suitable node (insufficient CPU on 2 nodes: want 1, none free)"; got != want {
			t.Errorf("reason = %q, want %q", got, want)
		}
		c.node("n3", 8)
		c.expect("a third node", map[string]int{"n1": 2, "n2": 2, "n3": 1})
		if got := c.reason("web"); got != "" {
			t.Errorf("reason = %q although all tasks have nodes", got)
		}
	})
}

// TestNodesThatShrink has a node come back with fewer cores than are reserved on it:
// what is there stays assigned until others take it away, and nothing comes to it.
func TestNodesThatShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.node("n1", 3)
		c.service("web", 3, 0)
		c.expect("room for all", map[string]int{"n1": 3})
		c.node("n1", 1)
		c.service("more", 1, 0)
		c.expect("too few cores", map[string]int{"n1": 3})
		if got, want := c.reason("more"), "no suitable node (insufficient CPU on 1 node: want 1, none free)"; got != want {
			t.Errorf("reason = %q, want %q", got, want)
		}
		c.node("n2", 1)
		c.expect("another node", map[string]int{"n1": 3, "n2": 1})
	})
}

func TestEndedTasksGiveBackWhatTheyHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.node("n1", 1)
		c.service("a", 1, 80)
		c.expect("the first", map[string]int{"n1": 1})
		c.service("b", 1, 80)
		c.expect("the node is full", map[string]int{"n1": 1})
		c.update(func(tx *store.Tx) {
			c.tables.Statuses.Put(tx, state.NodeTaskKey("n1", "a", "a-1"), &recordv1.Status{State: musterv1.TaskState_FAILED})
		})
		c.expect("the first has ended", map[string]int{"n1": 2})
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey("a", 1, "", "a-1")) })
		c.expect("the first is gone", map[string]int{"n1": 1})
	})
}

// TestTasksThatLeaveDoNotCount has a service's tasks replaced: where the former
// ones run says nothing of where the new ones should.
func TestTasksThatLeaveDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.node("n1", 8)
		c.service("web", 3, 0)
		c.expect("one node", map[string]int{"n1": 3})
		c.node("n2", 8)
		c.node("n3", 8)
		// Tables are followed each for itself: let the nodes be seen first.
		c.expect("two more nodes", map[string]int{"n1": 3})
		c.update(func(tx *store.Tx) {
			for slot := range uint64(3) {
				key := state.TaskKey("web", slot+1, "", fmt.Sprintf("web-%d", slot+1))
				e, _ := c.tables.Tasks.Get(tx, key)
				old := e.Value
				c.tables.Tasks.Put(tx, key, &recordv1.Task{Slot: old.Slot, SpecDigest: old.SpecDigest, DesiredState: musterv1.TaskState_SHUTDOWN})
				c.tables.Tasks.Put(tx, state.TaskKey("web", slot+1, "", fmt.Sprintf("web-%d-new", slot+1)), &recordv1.Task{
					Slot: old.Slot, SpecDigest: old.SpecDigest, DesiredState: musterv1.TaskState_RUNNING,
				})
			}
		})
		c.expect("new ones beside those that leave", map[string]int{"n1": 4, "n2": 1, "n3": 1})
	})
}

// TestNodesWhereTasksWentWrong has an executor blame its node, or a task fail there
// again and again: others are preferred for a while, also by a scheduler that comes
// later, and the node is taken if there is no other. What ended because it was told
// to counts for nothing.
func TestNodesWhereTasksWentWrong(t *testing.T) {
	// Of nodes that are alike the near one is taken.
	near, far := "n1", "n2"
	distance := func(node string) int {
		return (store.ShardOf(node) - store.ShardOf("web") + store.Shards) % store.Shards
	}
	if distance(near) > distance(far) {
		near, far = far, near
	}
	for name, tt := range map[string]struct {
		ends    int
		status  *recordv1.Status
		stopped bool
		avoided bool
	}{
		"blamed once":         {1, &recordv1.Status{State: musterv1.TaskState_REJECTED, NodeToBlame: true}, false, true},
		"failed four times":   {4, &recordv1.Status{State: musterv1.TaskState_FAILED}, false, false},
		"failed five times":   {5, &recordv1.Status{State: musterv1.TaskState_FAILED}, false, true},
		"stopped five times":  {5, &recordv1.Status{State: musterv1.TaskState_FAILED}, true, false},
		"complete five times": {5, &recordv1.Status{State: musterv1.TaskState_COMPLETE}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				defer c.close()
				stop := c.schedule("s1")
				c.node(near, 100)
				c.service("web", tt.ends, 0)
				c.expect("one node", map[string]int{near: tt.ends})
				c.node(far, 100)
				c.expect("another node", map[string]int{near: tt.ends})
				c.end(near, "web", tt.ends, tt.status, tt.stopped)
				// What has ended is no load, so the first node would be as good.
				want, next := map[string]int{near: tt.ends}, 0
				place := func(what, node string) {
					t.Helper()
					next++
					c.task("web", fmt.Sprint("next-", next))
					want[node]++
					c.expect(what, want)
					c.update(func(tx *store.Tx) {
						key := state.NodeTaskKey(node, "web", fmt.Sprint("next-", next))
						c.tables.Statuses.Put(tx, key, &recordv1.Status{State: musterv1.TaskState_COMPLETE})
					})
				}
				better := near
				if tt.avoided {
					better = far
				}
				place("when it has happened", better)
				stop()
				stop = c.schedule("s2")
				place("with another scheduler", better)
				time.Sleep(6 * time.Minute)
				place("after a while", near)
				stop()
			})
		})
	}
}

// end has all tasks of a service end on node n1: they are told to stop before, or,
// when they are replaced, after.
func (c *cluster) end(node, service string, tasks int, status *recordv1.Status, stopped bool) {
	c.t.Helper()
	tell := func() {
		time.Sleep(time.Second)
		c.update(func(tx *store.Tx) {
			for slot := range uint64(tasks) {
				key := state.TaskKey(service, slot+1, "", fmt.Sprintf("%s-%d", service, slot+1))
				e, _ := c.tables.Tasks.Get(tx, key)
				c.tables.Tasks.Put(tx, key, &recordv1.Task{
					Slot: slot + 1, SpecDigest: e.Value.SpecDigest, DesiredState: musterv1.TaskState_SHUTDOWN, DesiredAt: time.Now().UnixMilli(),
				})
			}
		})
		time.Sleep(time.Second)
	}
	if stopped {
		tell()
	}
	status.At = time.Now().UnixMilli()
	c.update(func(tx *store.Tx) {
		for slot := range tasks {
			c.tables.Statuses.Put(tx, state.NodeTaskKey(node, service, fmt.Sprintf("%s-%d", service, slot+1)), status)
		}
	})
	if !stopped {
		tell()
	}
}

// task writes one more task of a service.
func (c *cluster) task(service, id string) {
	c.t.Helper()
	record, _ := c.tables.Services.Get(c.store.Snapshot(), service)
	c.update(func(tx *store.Tx) {
		c.tables.Tasks.Put(tx, state.TaskKey(service, 1, "", id), &recordv1.Task{
			Slot: 1, SpecDigest: record.Value.TaskDigest, DesiredState: musterv1.TaskState_RUNNING,
		})
	})
}

func TestBoundTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		c.node("n1", 4)
		c.node("n2", 4)
		c.service("agent", 0, 0)
		record, _ := c.tables.Services.Get(c.store.Snapshot(), "agent")
		c.update(func(tx *store.Tx) {
			for _, n := range []string{"n1", "n2", "n3"} {
				c.tables.Tasks.Put(tx, state.TaskKey("agent", 0, n, "agent-"+n), &recordv1.Task{
					NodeId: n, SpecDigest: record.Value.TaskDigest, DesiredState: musterv1.TaskState_RUNNING,
				})
			}
		})
		c.expect("bound tasks", map[string]int{"n1": 1, "n2": 1})
		c.node("n3", 4)
		c.expect("the third node joins", map[string]int{"n1": 1, "n2": 1, "n3": 1})
	})
}

// TestReplicas has two schedulers fill the same nodes, one leave, and a third
// come: no node is filled twice over, and no task gets two nodes.
func TestReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		stop := c.schedule("s1")
		c.schedule("s2")
		time.Sleep(time.Second)
		for n := range 4 {
			c.node(fmt.Sprintf("n%d", n), 10)
		}
		for s := range 20 {
			c.service(fmt.Sprintf("service%d", s), 3, 0)
		}
		full := map[string]int{"n0": 10, "n1": 10, "n2": 10, "n3": 10}
		c.expect("40 of 60 fit", full)
		stop()
		c.schedule("s3")
		c.node("n4", 10)
		full["n4"] = 10
		c.expect("10 more", full)
	})
}
