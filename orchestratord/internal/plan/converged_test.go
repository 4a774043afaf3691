package plan_test

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// fleet are nodes as the orchestrator sees them.
type fleet struct {
	nodes  map[string]*placement.Node
	paused map[string]bool
}

func (f *fleet) Condition(node string) plan.Condition {
	switch {
	case f.nodes[node] == nil:
		return plan.Gone
	case f.paused[node]:
		return plan.Paused
	default:
		return plan.Up
	}
}

func (f *fleet) Room(*state.Task) bool { return true }

func (f *fleet) Nodes() iter.Seq[string] { return slices.Values(slices.Sorted(maps.Keys(f.nodes))) }

func (f *fleet) Matcher(expressions []string) (func(string) bool, error) {
	constraints, err := placement.ParseConstraints(expressions)
	return func(node string) bool { return f.nodes[node] != nil && constraints.Match(f.nodes[node]) }, err
}

// drawSpec draws a task spec. Few values of few fields make equal ones likely.
func drawSpec(t *rapid.T) *musterv1.TaskSpec {
	c := &musterv1.ContainerSpec{Image: rapid.SampledFrom([]string{"x", "x", "y"}).Draw(t, "image")}
	if rapid.Bool().Draw(t, "pull always") {
		c.PullOptions = &musterv1.PullOptions{Policy: musterv1.PullOptions_ALWAYS}
	}
	s := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: c}}
	if constraint := rapid.SampledFrom([]string{"", "node.labels.zone==a", "node.labels.zone!=b"}).Draw(t, "constraint"); constraint != "" {
		s.Placement = &musterv1.Placement{Constraints: []string{constraint}}
	}
	if rapid.IntRange(0, 4).Draw(t, "force") == 0 {
		s.ForceUpdate = 1
	}
	return s
}

// TestConvergedMeansThatNothingIsReplaced compares the API's view of a service whose
// tasks run with what the orchestrator does about them.
func TestConvergedMeansThatNothingIsReplaced(t *testing.T) {
	t.Parallel()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tables := state.NewTables()
	st, err := store.New(store.Options{KV: space}, objects.Tables(tables)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() { _ = st.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		reading.Wait()
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := st.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	number, agreed := 0, map[bool]int{}
	rapid.Check(t, func(t *rapid.T) {
		number++
		service := fmt.Sprintf("svc%d", number)
		w := &plan.Input{Now: time.UnixMilli(1_000_000), ServiceID: service, HistoryLimit: 5, NewID: func() string { return "new" }}
		var tasks []*state.Task
		specs := map[string]*musterv1.TaskSpec{}
		w.Spec = func(digest []byte) *musterv1.TaskSpec { return specs[string(digest)] }
		cluster := &fleet{nodes: map[string]*placement.Node{}, paused: map[string]bool{}}
		w.Cluster = cluster
		global := rapid.Bool().Draw(t, "global")
		published := []*musterv1.EndpointSpec{nil, {Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}}}
		spec := &musterv1.ServiceSpec{Name: service, Endpoint: rapid.SampledFrom(published).Draw(t, "endpoint")}
		// What is drawn is written at once afterwards.
		var writes []func(tx *store.Tx)
		write := func(fn func(tx *store.Tx)) { writes = append(writes, fn) }
		put := func(s *musterv1.TaskSpec) []byte {
			digest, err := state.Digest(s)
			if err != nil {
				t.Fatal(err)
			}
			specs[string(digest)] = s
			write(func(tx *store.Tx) { tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: s}) })
			return digest
		}
		w.Service = &recordv1.Service{Spec: spec, SpecVersion: 1, TaskDigest: put(drawSpec(t))}
		var names []string
		for _, node := range []string{"n1", "n2", "n3"} {
			name := node + service
			names = append(names, name)
			reported := &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{Hostname: name}}
			operator := &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: musterv1.NodeSpec_ACTIVE, Labels: map[string]string{"zone": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")}}}
			if cluster.paused[name] = rapid.IntRange(0, 3).Draw(t, "paused") == 0; cluster.paused[name] {
				operator.Spec.Availability = musterv1.NodeSpec_PAUSE
			}
			cluster.nodes[name] = placement.NewNode(name, reported, operator)
			write(func(tx *store.Tx) {
				tables.NodeStates.Put(tx, name, reported)
				tables.Nodes.Put(tx, name, operator)
			})
		}
		// Other rounds take no part.
		write(func(tx *store.Tx) {
			for e := range tables.Services.Scan(tx, "") {
				tables.Services.Delete(tx, e.Key)
			}
			for e := range tables.Tasks.Scan(tx, "") {
				tables.Tasks.Delete(tx, e.Key)
			}
			for e := range tables.NodeStates.Scan(tx, "") {
				if cluster.nodes[e.Key] == nil {
					tables.NodeStates.Delete(tx, e.Key)
					tables.Nodes.Delete(tx, e.Key)
				}
			}
		})
		for i, node := range names {
			its, endpoint := drawSpec(t), rapid.SampledFrom(append(published, spec.Endpoint, spec.Endpoint)).Draw(t, "task's endpoint")
			if fits, err := cluster.Matcher(its.GetPlacement().GetConstraints()); err != nil || !fits(node) {
				// It would not have come to run there.
				continue
			}
			rec := &recordv1.Task{SpecDigest: put(its), SpecVersion: 1, DesiredState: running, CreatedAt: 1, DesiredAt: 1}
			if rec.EndpointDigest, err = state.EndpointDigest(endpoint); err != nil {
				t.Fatal(err)
			}
			if global {
				rec.NodeId = node
			} else {
				rec.Slot = uint64(len(tasks) + 1)
			}
			id := fmt.Sprintf("t%d%s", i, service)
			task := &state.Task{ID: id, ServiceID: service, Key: state.TaskKey(service, rec.Slot, rec.NodeId, id), Version: 1, Record: rec, NodeID: node,
				Assignment: &recordv1.Assignment{Slot: rec.Slot}, Status: &recordv1.Status{State: running, At: 1}}
			tasks = append(tasks, task)
			write(func(tx *store.Tx) {
				tables.Tasks.Put(tx, task.Key, rec)
				tables.Assignments.Put(tx, state.NodeTaskKey(node, service, id), task.Assignment)
				tables.Statuses.Put(tx, state.NodeTaskKey(node, service, id), task.Status)
			})
		}
		if global {
			spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
		} else {
			spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(uint64(len(tasks)))}}
		}
		write(func(tx *store.Tx) { tables.Services.Put(tx, service, w.Service) })
		if err := st.Update(ctx, func(tx *store.Tx) error {
			for _, fn := range writes {
				fn(tx)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var status *musterv1.ServiceStatus
		objects.New(st, tables, seal.NewKeyring(), 1).Read(func(r *objects.Reader) {
			if s, ok := r.Service(service); ok {
				status = r.ServiceMessage(s).Status
			}
		})
		w.Tasks = plan.NewIndex(service, slices.Values(tasks))
		p, err := plan.Decide(w)
		if err != nil {
			t.Fatal(err)
		}
		settled := len(p.Slots) == 0 && p.Rollout == nil
		if status.GetConverged() != settled {
			t.Errorf("the API says %v, the orchestrator does: %s", status, describe(p))
		}
		agreed[settled]++
	})
	if agreed[true] == 0 || agreed[false] == 0 {
		t.Errorf("all services were alike: %v", agreed)
	}
}
