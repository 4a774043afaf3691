package orchestratord_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord"
)

// cluster is everything around orchestrators: a key space, users, and a world
// that gives tasks nodes and runs them.
type cluster struct {
	t      testing.TB
	ctx    context.Context
	kv     kv.KV
	log    *zap.Logger
	tables *state.Tables
	store  *store.Store
	// ended waits for what was started.
	ended []func()
	names int

	mu     sync.Mutex
	scales []scale
}

// scale is how many replicas were asked for, from some time on.
type scale struct {
	at time.Time
	n  int
}

// wanted returns the least and the greatest number of replicas that were asked
// for between some time and now.
func (c *cluster) wanted(since time.Time) (least, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.scales
	for len(rest) > 1 && rest[1].at.Before(since) {
		rest = rest[1:]
	}
	for i, s := range rest {
		if i == 0 {
			least, most = s.n, s.n
		}
		least, most = min(least, s.n), max(most, s.n)
	}
	return least, most
}

func (c *cluster) wants(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scales = append(c.scales, scale{time.Now(), n})
}

func newCluster(t testing.TB, log *zap.Logger) *cluster {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, ctx: t.Context(), kv: space, log: log, tables: state.NewTables()}
	c.store, err = store.New(store.Options{KV: c.kv, Prefix: daemon.Prefix},
		c.tables.Services, c.tables.Specs, c.tables.Clusters, c.tables.Nodes, c.tables.NodeStates,
		c.tables.Tasks, c.tables.Rollouts, c.tables.Assignments, c.tables.Statuses, c.tables.Endpoints, c.tables.Names)
	if err != nil {
		t.Fatal(err)
	}
	c.run(c.store.Run)
	if err := c.store.Ready(c.ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs f until stop or the cluster's end.
func (c *cluster) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("run: %v", err)
		}
	}
	c.ended = append(c.ended, stop)
	return stop
}

// close ends everything.
func (c *cluster) close() {
	for _, stop := range slices.Backward(c.ended) {
		stop()
	}
}

// orchestrator starts an orchestrator.
func (c *cluster) orchestrator() (stop func()) {
	c.t.Helper()
	c.names++
	d, err := orchestratord.New(c.env(fmt.Sprintf("o%d", c.names)))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.run(d.Run)
}

func (c *cluster) env(name string) daemon.Env {
	return daemon.Env{
		KV: c.kv, Prefix: daemon.Prefix, Member: shards.Member{Instance: name, Daemon: "orchestratord"},
		Session: func(ctx context.Context) (kv.Session, error) {
			return c.kv.NewSession(ctx, kv.SessionConfig{Name: name})
		},
		Logger: c.log,
	}
}

func (c *cluster) update(fn func(tx *store.Tx) error) {
	c.t.Helper()
	if err := c.store.Update(c.ctx, fn); err != nil {
		c.t.Fatal(err)
	}
}

// node writes what an operator and a node itself say of a node.
func (c *cluster) node(id string, s musterv1.NodeStatus_State, a musterv1.NodeSpec_Availability, labels map[string]string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) error {
		c.tables.Nodes.Put(tx, id, &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: a, Labels: labels}})
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{State: s})
		return nil
	})
}

// up makes nodes that take tasks.
func (c *cluster) up(ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		c.node(id, musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, nil)
	}
}

// sized makes a node that takes tasks, or has it come back with other resources.
func (c *cluster) sized(id string, has *musterv1.Resources) {
	c.t.Helper()
	c.update(func(tx *store.Tx) error {
		c.tables.Nodes.Put(tx, id, &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: musterv1.NodeSpec_ACTIVE}})
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{Hostname: id, Resources: has},
		})
		return nil
	})
}

// service writes a service's spec as the API would.
func (c *cluster) service(id string, spec *musterv1.ServiceSpec, task *musterv1.TaskSpec) {
	c.t.Helper()
	digest, err := state.Digest(task)
	if err != nil {
		c.t.Fatal(err)
	}
	c.wants(int(spec.GetReplicated().GetReplicas()))
	c.update(func(tx *store.Tx) error {
		next := &recordv1.Service{Spec: spec, TaskDigest: digest, SpecVersion: 1}
		if e, ok := c.tables.Services.Get(tx, id); ok {
			old := e.Value
			next.PreviousSpec, next.PreviousTaskDigest, next.PreviousSpecVersion = old.Spec, old.TaskDigest, old.SpecVersion
			next.SpecVersion, next.Attempt = old.SpecVersion, old.Attempt
			next.FormerTaskDigest, next.FormerSpecVersion = old.FormerTaskDigest, old.FormerSpecVersion
			if string(old.TaskDigest) != string(digest) {
				next.SpecVersion, next.Attempt = next.SpecVersion+1, next.Attempt+1
				next.FormerTaskDigest, next.FormerSpecVersion = old.TaskDigest, old.SpecVersion
			}
		}
		c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: task})
		c.tables.Services.Put(tx, id, next)
		return nil
	})
}

func (c *cluster) remove(id string) {
	c.t.Helper()
	c.wants(0)
	c.update(func(tx *store.Tx) error {
		c.tables.Services.Delete(tx, id)
		return nil
	})
}

func replicated(n uint64) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &n}}}
}

func global() *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}}
}

// null is a task spec that differs from others by its number.
func null(n uint64) *musterv1.TaskSpec {
	return &musterv1.TaskSpec{
		Runtime:     &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}},
		ForceUpdate: n,
	}
}

// tasks returns the tasks of a service as they are now.
func (c *cluster) tasks(service string) []*state.Task {
	f := state.NewFollower(c.tables)
	f.Advance(c.store.Snapshot())
	return slices.Collect(f.ServiceTasks(service))
}

func (c *cluster) live(service string) []*state.Task {
	return slices.DeleteFunc(c.tasks(service), func(t *state.Task) bool { return !t.Live() })
}

// report writes a task's status, as the dispatcher would.
func (c *cluster) report(t *state.Task, s musterv1.TaskState) {
	c.t.Helper()
	c.update(func(tx *store.Tx) error {
		c.putStatus(tx, t, s)
		return nil
	})
}

func (c *cluster) putStatus(tx *store.Tx, t *state.Task, s musterv1.TaskState) {
	key := state.NodeTaskKey(t.NodeID, t.ServiceID, t.ID)
	old, ok := c.tables.Statuses.Get(tx, key)
	if ok && old.Value.State >= s {
		return
	}
	now := time.Now().UnixMilli()
	next := &recordv1.Status{State: s, At: now, AppliedAt: now}
	state.SetTimes(next, append(slices.Collect(state.Times(old.Value)), state.StateTime{State: s, At: now}))
	c.tables.Statuses.Put(tx, key, next)
}

// world gives every task a node and runs it, until ctx ends: a scheduler, a
// dispatcher and workers in a few lines.
func (c *cluster) world(ctx context.Context) error {
	f := state.NewFollower(c.tables)
	var seen *store.Snapshot
	for {
		sn, err := c.store.Wait(ctx, seen)
		if err != nil {
			return nil
		}
		f.Advance(sn)
		seen = sn
		err = c.store.Update(ctx, func(tx *store.Tx) error {
			c.turn(tx, f)
			return nil
		})
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// request returns what a task asks of its node.
func (c *cluster) request(tx *store.Tx, t *state.Task) *placement.Request {
	spec, _ := c.tables.Specs.Get(tx, state.SpecKey(t.Record.SpecDigest))
	r, err := placement.NewRequest(t.ServiceID, spec.Value.GetTask(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// suitable returns those of some nodes that meet a task's constraints and have the
// resources that it reserves.
func (c *cluster) suitable(tx *store.Tx, r *placement.Request, nodes []string) []string {
	return slices.DeleteFunc(slices.Clone(nodes), func(id string) bool {
		reported, _ := c.tables.NodeStates.Get(tx, id)
		operator, _ := c.tables.Nodes.Get(tx, id)
		n := placement.NewNode(id, reported.Value, operator.Value)
		cpus, memory := r.NanoCPUs, r.MemoryBytes
		for e := range c.tables.Assignments.Scan(tx, id+"/") {
			// What has ended holds nothing.
			if s, _ := c.tables.Statuses.Get(tx, e.Key); s.Value.GetState() <= musterv1.TaskState_RUNNING {
				cpus, memory = cpus+e.Value.NanoCpus, memory+e.Value.MemoryBytes
			}
		}
		has := n.Description.GetResources()
		return !r.Constraints.Match(n) || r.NanoCPUs > 0 && cpus > has.GetNanoCpus() || r.MemoryBytes > 0 && memory > has.GetMemoryBytes()
	})
}

// turn does one step for each task.
func (c *cluster) turn(tx *store.Tx, f *state.Follower) {
	up, count := []string{}, map[string]int{}
	states := map[string]musterv1.NodeStatus_State{}
	for e := range c.tables.NodeStates.Scan(tx, "") {
		states[e.Key] = e.Value.State
		operator, _ := c.tables.Nodes.Get(tx, e.Key)
		if e.Value.State == musterv1.NodeStatus_READY && operator.Value.GetSpec().GetAvailability() == musterv1.NodeSpec_ACTIVE {
			up = append(up, e.Key)
		}
	}
	for e := range c.tables.Assignments.Scan(tx, "") {
		node, service, task := state.SplitKey(e.Key)
		if _, ok := c.tables.Tasks.Get(tx, state.AssignedTaskKey(node, service, task, e.Value)); !ok {
			c.tables.Assignments.Delete(tx, e.Key)
			c.tables.Statuses.Delete(tx, e.Key)
			continue
		}
		count[node]++
	}
	for t := range f.Tasks() {
		if _, ok := c.tables.Tasks.Get(tx, t.Key); !ok {
			continue
		}
		node := t.NodeID
		switch {
		case node == "" && t.Live() && t.Desired() >= musterv1.TaskState_READY:
			r := c.request(tx, t)
			if fit := c.suitable(tx, r, up); t.Record.NodeId != "" {
				if slices.Contains(fit, t.Record.NodeId) {
					node = t.Record.NodeId
				}
			} else if len(fit) > 0 {
				node = slices.MinFunc(fit, func(a, b string) int { return cmp.Or(cmp.Compare(count[a], count[b]), cmp.Compare(a, b)) })
			}
			if slices.Contains(up, node) {
				count[node]++
				c.tables.Assignments.Put(tx, state.NodeTaskKey(node, t.ServiceID, t.ID), r.Assignment(t.Record.Slot, time.Now().UnixMilli()))
			}
		case node != "" && states[node] == musterv1.NodeStatus_READY && !t.Terminal():
			c.putStatus(tx, t, min(t.Desired(), musterv1.TaskState_SHUTDOWN))
		}
	}
}

// converged says what keeps a service from running n tasks of its spec, one in
// each slot or on each node; "" if nothing does.
func (c *cluster) converged(service string, n int) string {
	e, ok := c.tables.Services.Get(c.store.Snapshot(), service)
	if !ok {
		if ts := c.tasks(service); len(ts) > 0 {
			return fmt.Sprintf("removed, and %d tasks are left", len(ts))
		}
		return ""
	}
	slots := map[string]int{}
	for _, t := range c.live(service) {
		_, slot, _ := state.SplitKey(t.Key)
		if slots[slot]++; slots[slot] > 1 {
			return fmt.Sprintf("slot %s has %d live tasks", slot, slots[slot])
		}
		if t.State() != musterv1.TaskState_RUNNING || t.Desired() != musterv1.TaskState_RUNNING {
			return fmt.Sprintf("%s is %v, desired %v", t.Key, t.State(), t.Desired())
		}
		if string(t.Record.SpecDigest) != string(e.Value.TaskDigest) {
			return fmt.Sprintf("%s is of a former spec", t.Key)
		}
	}
	if len(slots) != n {
		return fmt.Sprintf("%d slots (%s), want %d", len(slots), strings.Join(slices.Sorted(maps.Keys(slots)), " "), n)
	}
	return ""
}

// settle waits, in virtual time, until a service has converged.
func (c *cluster) settle(service string, n int) {
	c.t.Helper()
	var why string
	for range 200 {
		synctest.Wait()
		if why = c.converged(service, n); why == "" {
			return
		}
		pass(500 * time.Millisecond)
	}
	c.t.Fatalf("service %s does not converge: %s", service, why)
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// bubble runs a test in virtual time.
func bubble(t *testing.T, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
		defer c.close()
		f(t, c)
	})
}
