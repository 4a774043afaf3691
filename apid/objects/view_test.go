package objects_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// world writes random records, as all daemons together would.
type world struct {
	tables *state.Tables
	store  *store.Store
	specs  [][]byte
}

func newWorld(t rapid.TB) (*world, func()) {
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{tables: state.NewTables()}
	if w.store, err = store.New(store.Options{KV: space}, objects.Tables(w.tables)...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.store.Run(ctx) })
	if err := w.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	w.update(t, func(tx *store.Tx) {
		for i, constraint := range []string{"", "node.labels.a==1", "node.labels.a!=1"} {
			for _, image := range []string{"x", "y"} {
				spec := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: image}}}
				if i > 0 {
					spec.Placement = &musterv1.Placement{Constraints: []string{constraint}}
				}
				digest, err := state.Digest(spec)
				if err != nil {
					t.Fatal(err)
				}
				w.specs = append(w.specs, digest)
				w.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec})
			}
		}
	})
	return w, func() {
		cancel()
		running.Wait()
		if err := space.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) update(t rapid.TB, fn func(tx *store.Tx)) {
	if err := w.store.Update(context.Background(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// step changes one record.
func (w *world) step(t *rapid.T) {
	service := rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "service")
	node := rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node")
	slot := rapid.Uint64Range(0, 2).Draw(t, "slot")
	task := fmt.Sprint("t-", service, "-", node, "-", slot)
	spec := rapid.SampledFrom(w.specs).Draw(t, "spec")
	st := rapid.SampledFrom([]musterv1.TaskState{192, 512, 640, 704}).Draw(t, "state")
	desired := rapid.SampledFrom([]musterv1.TaskState{384, 512, 640}).Draw(t, "desired")
	failures := rapid.Uint32Range(2, 3).Draw(t, "early failures")
	what := rapid.IntRange(0, 17).Draw(t, "what")
	w.update(t, func(tx *store.Tx) {
		ts, held := w.tables, state.NodeTaskKey(node, service, task)
		rec := &recordv1.Task{Slot: slot, SpecDigest: spec, DesiredState: desired, EarlyFailures: failures}
		if slot == 0 {
			rec.NodeId = node
		}
		key := state.TaskKey(service, slot, rec.NodeId, task)
		switch what {
		case 0:
			s := &musterv1.ServiceSpec{Name: "name-" + service, Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(slot)}}}
			if slot == 0 {
				s.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
			}
			ts.Services.Put(tx, service, &recordv1.Service{Spec: s, TaskDigest: spec, PreviousTaskDigest: w.specs[0]})
		case 1:
			ts.Services.Delete(tx, service)
		case 2, 3:
			ts.Tasks.Put(tx, key, rec)
		case 4:
			ts.Tasks.Delete(tx, key)
		case 5, 6:
			ts.Assignments.Put(tx, held, &recordv1.Assignment{Slot: slot, NanoCpus: int64(slot) + 1, MemoryBytes: 7})
		case 7:
			// These go once the task has gone.
			if _, ok := ts.Tasks.Get(tx, key); !ok {
				ts.Assignments.Delete(tx, held)
				ts.Statuses.Delete(tx, held)
			}
		case 8:
			ts.Statuses.Put(tx, held, &recordv1.Status{State: st})
		case 9:
			ts.NodeStates.Put(tx, node, &recordv1.NodeState{State: musterv1.NodeStatus_State(1 + slot), Description: &musterv1.NodeDescription{Hostname: node}})
		case 10:
			ts.Nodes.Put(tx, node, &recordv1.Node{Removed: desired == 640, Spec: &musterv1.NodeSpec{Labels: map[string]string{"a": fmt.Sprint(slot)}, Availability: musterv1.NodeSpec_Availability(slot)}})
		case 12:
			ts.Configs.Put(tx, service, &recordv1.Config{Spec: &musterv1.ConfigSpec{Name: "config-" + node, Labels: map[string]string{"a": fmt.Sprint(slot)}}, Size: 7})
		case 13:
			ts.Configs.Delete(tx, service)
		case 14:
			ts.Networks.Put(tx, service, &recordv1.Network{Spec: &musterv1.NetworkSpec{Name: "network-" + node, Labels: map[string]string{"a": fmt.Sprint(slot)}}})
		case 15:
			ts.Networks.Delete(tx, service)
		case 16:
			ts.NetworkStates.Put(tx, service, &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, TotalBlocks: uint32(slot)})
		case 17:
			if block := state.BlockKey(service, uint32(slot)); desired == 512 {
				ts.Blocks.Delete(tx, block)
			} else {
				ts.Blocks.Put(tx, block, &recordv1.Block{NodeId: node})
			}
		case 11:
			ts.Placements.Put(tx, state.PlacementKey(service, spec), &recordv1.Placement{Pending: slot, Reason: "why"})
		}
	})
}

// shown is all that a view shows.
func shown(v *objects.View) map[string]proto.Message {
	all := map[string]proto.Message{}
	v.Read(func(r *objects.Reader) {
		r.Services("", func(s *objects.Service) bool { all["service "+s.ID] = r.ServiceMessage(s); return true })
		r.Tasks("", func(t *objects.Task) bool { all["task "+t.ID] = r.TaskMessage(t); return true })
		r.Nodes("", func(n *objects.Node) bool { all["node "+n.ID] = r.NodeMessage(n); return true })
		r.Configs().Ascend("", func(c *objects.Config) bool { all["config "+c.ID] = objects.ConfigMessage(c); return true })
		r.Networks("", func(n *objects.Network) bool { all["network "+n.ID] = r.NetworkMessage(n); return true })
		all["cluster"] = r.ClusterMessage(r.Cluster())
	})
	return all
}

// A view that has followed every change shows what one shows that looks for
// the first time; and its changes lead from what it showed to what it shows.
func TestViewFollowsAsIfItLookedAnew(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, end := newWorld(t)
		defer end()
		v := objects.New(w.store, w.tables, seal.NewKeyring(), 1000)
		known := shown(v)
		cursor, point := v.Now()
		for range rapid.IntRange(1, 25).Draw(t, "looks") {
			for range rapid.IntRange(1, 4).Draw(t, "steps") {
				w.step(t)
			}
			got, fresh := shown(v), shown(objects.New(w.store, w.tables, seal.NewKeyring(), 1000))
			if d := cmp.Diff(fresh, got, protocmp.Transform()); d != "" {
				t.Fatalf("followed (-fresh +followed):\n%s", d)
			}
			changes, next, at, _, err := v.Since(cursor)
			if err != nil {
				t.Fatal(err)
			}
			resumed, err := v.Resume(point)
			if err != nil || !resumed.Caught || !resumed.Point.Equal(at) {
				t.Fatalf("resume: %v, caught up %v", err, resumed.Caught)
			}
			if d := cmp.Diff(ids(changes), ids(resumed.Changes)); d != "" {
				t.Fatalf("a watch that resumes is told something else (-told +resumed):\n%s", d)
			}
			apply(t, v, known, changes)
			for key := range got {
				if known[key] == nil {
					t.Fatalf("%s was never told of", key)
				}
			}
			if len(known) != len(got) {
				t.Fatalf("a watcher knows %d objects, want %d", len(known), len(got))
			}
			cursor, point = next, at
		}
	})
}

func ids(changes []objects.Change) (list []string) {
	for _, c := range changes {
		list = append(list, fmt.Sprint(c.Kind, c.ID, c.Old != nil, c.New != nil))
	}
	return list
}

// apply does what a watcher does, and checks that it could.
func apply(t *rapid.T, v *objects.View, known map[string]proto.Message, changes []objects.Change) {
	v.Read(func(r *objects.Reader) {
		for _, c := range changes {
			object := c.New
			if object == nil {
				object = c.Old
			}
			key, m := named(c), object.Message(r)
			if (c.Old != nil) != (known[key] != nil) {
				t.Fatalf("%s: told as if it was there: %v, but it was: %v", key, c.Old != nil, known[key] != nil)
			}
			if c.New == nil {
				delete(known, key)
			} else {
				known[key] = m
			}
		}
	})
}
