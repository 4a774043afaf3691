package faults_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// crowd is how many services there are, so that each replica has some of them.
const crowd = 24

// bench is a cluster with two replicas of each manager, on which parts die.
type bench struct {
	*rig.Rig
	// services are the ids of the crowd; endpoints of one that has no tasks, and
	// publishes ports; onNode those of services that run on one worker.
	services, endpoints []string
	onNode              map[string]string

	mu sync.Mutex
	// sizes is how many tasks each service should have, and ports what it should
	// publish.
	sizes map[string]uint64
	ports map[string]uint32
	// steady are the tasks that nothing may move.
	steady map[string]*musterv1.Task
}

func newBench(t *testing.T, cfg cluster.Config) *bench {
	t.Helper()
	return newBenchOf(t, built, cfg)
}

// newBenchOf is the same with programs of another build.
func newBenchOf(t *testing.T, built string, cfg cluster.Config) *bench {
	t.Helper()
	cfg.Replicas = 2
	r := startOf(t, built, cfg, "one", "two")
	b := &bench{Rig: r, onNode: map[string]string{}, sizes: map[string]uint64{}, ports: map[string]uint32{}}
	for i := range crowd {
		id, err := r.Create(t.Context(), rig.Null(fmt.Sprintf("crowd-%d", i), 1))
		ok(t, err)
		b.services = append(b.services, id)
		b.sizes[id] = 1
	}
	for i := range most {
		spec := rig.Null(fmt.Sprintf("ports-%d", i), 0)
		id, err := r.Create(t.Context(), spec)
		ok(t, err)
		b.endpoints = append(b.endpoints, id)
	}
	for _, worker := range []string{"one", "two"} {
		spec := rig.Null("on-"+worker, 1)
		spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.hostname==" + worker}}
		id, err := r.Create(t.Context(), spec)
		ok(t, err)
		b.onNode[worker], b.sizes[id] = id, 1
	}
	_, err := r.Create(t.Context(), rig.Processes("steady", 4, rig.Sleep))
	ok(t, err)
	wait.Within(t, waitTimeout, "the steady service runs", func(ctx context.Context) (err error) {
		b.steady, err = r.Running(ctx, "steady", 4)
		return err
	})
	b.settle(t)
	return b
}

// settle waits until all replicas share the work out evenly, and the crowd runs.
func (b *bench) settle(t *testing.T) {
	t.Helper()
	wait.Within(t, waitTimeout, "the shards are shared out", b.even)
	for id, n := range b.sizes {
		wait.Within(t, waitTimeout, "the crowd runs", func(ctx context.Context) error {
			_, err := b.Running(ctx, id, int(n))
			return err
		})
	}
	wait.Within(t, waitTimeout, "all nodes are ready", b.Ready)
}

// unmoved fails the test unless the steady tasks are what they were at first.
func (b *bench) unmoved(t *testing.T) {
	t.Helper()
	wait.Within(t, waitTimeout, "the steady service runs as before", func(ctx context.Context) error {
		now, err := b.Running(ctx, "steady", len(b.steady))
		if err != nil {
			return err
		}
		if err := rig.Same(b.steady, now); err != nil {
			t.Fatal(err)
		}
		return nil
	})
}

// shardsOf is how many shards the work of a daemon has. The allocator has one more, for
// what all networks share.
func shardsOf(daemon string) int {
	if daemon == "allocatord" {
		return store.Shards + 1
	}
	return store.Shards
}

// even returns an error unless the two replicas of each daemon share its work out.
func (b *bench) even(ctx context.Context) error {
	all, err := b.Daemons(ctx)
	if err != nil {
		return err
	}
	replicas, held := map[string]int{}, map[string]int{}
	for _, d := range all {
		replicas[d.Daemon]++
		held[d.Daemon] += len(d.Shards)
		if n := shardsOf(d.Daemon); len(d.Shards) > (n+1)/2 {
			return fmt.Errorf("%s at %s has %d of %d shards", d.Daemon, d.Address, len(d.Shards), n)
		}
	}
	for _, daemon := range cluster.Managers() {
		if replicas[daemon] != 2 {
			return fmt.Errorf("there are %d replicas of %s", replicas[daemon], daemon)
		}
		if n := shardsOf(daemon); daemon != "apid" && held[daemon] != n {
			return fmt.Errorf("the replicas of %s hold %d of %d shards", daemon, held[daemon], n)
		}
	}
	return nil
}

// without returns an error unless all shards of a daemon are worked on by others
// than one replica.
func (b *bench) without(ctx context.Context, daemon, victim string) error {
	all, err := b.Daemons(ctx)
	if err != nil {
		return err
	}
	held := 0
	for _, d := range all {
		if d.Daemon == daemon && d.Address != b.Address(victim) {
			held += len(d.Shards)
		}
	}
	if held != shardsOf(daemon) {
		return fmt.Errorf("others have %d shards", held)
	}
	return nil
}

// owners returns which replica of a daemon works on which shard.
func (b *bench) owners(t *testing.T, daemon string) map[int]string {
	t.Helper()
	all, err := b.Daemons(t.Context())
	ok(t, err)
	owners := map[int]string{}
	for _, d := range all {
		for _, name := range b.Replicas(daemon) {
			if b.Address(name) == d.Address {
				for _, shard := range d.Shards {
					owners[int(shard)] = name
				}
			}
		}
	}
	return owners
}
