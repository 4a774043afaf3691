package schedulerd_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

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

// BenchmarkLargeServices has services of 5,000 tasks placed on 500 nodes.
func BenchmarkLargeServices(b *testing.B) {
	s := newSite(b, 500)
	for i := 0; b.Loop(); i++ {
		s.deploy(b, fmt.Sprintf("service%d", i), 5000)
	}
}

// BenchmarkSmallServices has a task placed on one of 5,000 nodes, in one service after
// the other.
func BenchmarkSmallServices(b *testing.B) {
	s := newSite(b, 5000)
	for i := 0; b.Loop(); i++ {
		s.deploy(b, fmt.Sprintf("service%d", i), 1)
	}
}

// BenchmarkWaitingTasks has a service placed while 2,000 tasks of 20 others find no
// room on 500 nodes.
func BenchmarkWaitingTasks(b *testing.B) {
	s := newSite(b, 500)
	for i := range 20 {
		s.create(b, fmt.Sprintf("waiting%d", i), 100, 1<<20)
	}
	for i := 0; b.Loop(); i++ {
		s.deploy(b, fmt.Sprintf("service%d", i), 500)
	}
}

// site is a store with nodes, and a scheduler, in real time.
type site struct {
	ctx    context.Context
	tables *state.Tables
	store  *store.Store
	placed int
	want   int
}

func newSite(b *testing.B, nodes int) *site {
	b.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &site{ctx: ctx, tables: state.NewTables()}
	ts := s.tables
	if s.store, err = store.New(store.Options{KV: space, Prefix: daemon.Prefix},
		ts.Services, ts.Specs, ts.Tasks, ts.Assignments, ts.Placements, ts.NodeStates, ts.Statuses); err != nil {
		b.Fatal(err)
	}
	d, err := schedulerd.New(daemon.Env{
		KV: space, Prefix: daemon.Prefix, Logger: zap.NewNop(), Metrics: prometheus.NewRegistry(), Member: shards.Member{Instance: "s1"},
		Session: func(ctx context.Context) (kv.Session, error) { return space.NewSession(ctx, kv.SessionConfig{}) },
	})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- s.store.Run(ctx) }()
	go func() { ended <- d.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
		_ = space.Close()
	})
	if err := s.store.Ready(ctx); err != nil {
		b.Fatal(err)
	}
	s.update(b, func(tx *store.Tx) {
		for i := range nodes {
			ts.NodeStates.Put(tx, fmt.Sprintf("node%d", i), &recordv1.NodeState{
				State: musterv1.NodeStatus_READY,
				Description: &musterv1.NodeDescription{
					Resources: &musterv1.Resources{NanoCpus: 64e9, MemoryBytes: 1 << 40},
					Executors: []*musterv1.ExecutorDescription{{Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}}},
					Machine:   &musterv1.Machine{Id: fmt.Sprintf("machine%d", i)},
				},
			})
		}
	})
	s.deploy(b, "first", 1)
	return s
}

func (s *site) update(b *testing.B, fn func(tx *store.Tx)) {
	b.Helper()
	if err := s.store.Update(s.ctx, func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		b.Fatal(err)
	}
}

// create writes a service and its tasks, which each reserve some memory.
func (s *site) create(b *testing.B, id string, tasks int, gibibytes int64) {
	b.Helper()
	spec := &musterv1.TaskSpec{
		Runtime:   &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}},
		Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{MemoryBytes: gibibytes << 30}},
	}
	digest, err := state.Digest(spec)
	if err != nil {
		b.Fatal(err)
	}
	s.update(b, func(tx *store.Tx) {
		s.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec})
		s.tables.Services.Put(tx, id, &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: id}, TaskDigest: digest})
		for slot := range uint64(tasks) {
			s.tables.Tasks.Put(tx, state.TaskKey(id, slot+1, "", fmt.Sprintf("%s-%d", id, slot+1)), &recordv1.Task{
				Slot: slot + 1, SpecDigest: digest, DesiredState: musterv1.TaskState_RUNNING,
			})
		}
	})
}

// deploy creates a service and waits until its tasks have nodes.
func (s *site) deploy(b *testing.B, id string, tasks int) {
	b.Helper()
	s.want += tasks
	seen := s.store.Snapshot()
	s.create(b, id, tasks, 0)
	for s.placed < s.want {
		next, err := s.store.Wait(s.ctx, seen, s.tables.Assignments)
		if err != nil {
			b.Fatal(err)
		}
		for range s.tables.Assignments.Changes(seen, next) {
			s.placed++
		}
		seen = next
	}
}
