package faults_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/wait"
)

// target is a replica that is to die, and changes that need it: each is made and
// waited for.
type target struct {
	victim  string
	changes []func(context.Context) error
}

// daemons are the managers that own shards, and for each what needs them.
var daemons = []struct {
	name string
	aim  func(b *bench, t *testing.T, daemon string) target
}{
	{"orchestratord", (*bench).aimAtServices},
	{"allocatord", (*bench).aimAtEndpoints},
	{"schedulerd", (*bench).aimAtServices},
	{"dispatcherd", (*bench).aimAtNodes},
}

// atOnce makes all changes at once.
func (a target) atOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	errs := make([]error, len(a.changes))
	var wg sync.WaitGroup
	for i, change := range a.changes {
		wg.Go(func() { errs[i] = change(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// most is how many changes are made at once.
const most = 4

// aimAtServices scales services of the victim's up by one.
func (b *bench) aimAtServices(t *testing.T, daemon string) target {
	owners := b.owners(t, daemon)
	a := target{victim: owners[store.ShardOf(b.services[0])]}
	for _, id := range b.services {
		if owners[store.ShardOf(id)] == a.victim && len(a.changes) < most {
			a.changes = append(a.changes, func(ctx context.Context) error { return b.grow(ctx, id) })
		}
	}
	return a
}

// aimAtEndpoints has services publish another port, for which there is one
// allocator.
func (b *bench) aimAtEndpoints(t *testing.T, daemon string) target {
	a := target{victim: b.owners(t, daemon)[0]}
	for _, id := range b.endpoints {
		a.changes = append(a.changes, func(ctx context.Context) error { return b.publish(ctx, id) })
	}
	return a
}

// aimAtNodes has a task start on a node of the dispatcher that is to die.
func (b *bench) aimAtNodes(t *testing.T, daemon string) target {
	owners := b.owners(t, daemon)
	victim := owners[store.ShardOf(b.Nodes["one"])]
	a := target{victim: victim}
	for worker, id := range b.onNode {
		if owners[store.ShardOf(b.Nodes[worker])] == victim {
			a.changes = append(a.changes, func(ctx context.Context) error { return b.grow(ctx, id) })
		}
	}
	return a
}

// grow scales a service up by one and waits until all its tasks run.
func (b *bench) grow(ctx context.Context, id string) error {
	b.mu.Lock()
	b.sizes[id]++
	size := b.sizes[id]
	b.mu.Unlock()
	if err := b.Scale(ctx, id, size); err != nil {
		return fmt.Errorf("scale %s: %w", id, err)
	}
	return wait.Until(ctx, func(ctx context.Context) error {
		_, err := b.Running(ctx, id, int(size))
		return err
	})
}

// size is how many tasks a service should have.
func (b *bench) size(id string) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sizes[id]
}

// publish gives a service a port that it did not have, and waits until that is
// allocated.
func (b *bench) publish(ctx context.Context, id string) error {
	b.mu.Lock()
	b.ports[id]++
	port := b.ports[id]
	b.mu.Unlock()
	err := b.Update(ctx, id, func(spec *musterv1.ServiceSpec) {
		spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: port, PublishMode: musterv1.PortConfig_HOST}}}
	})
	if err != nil {
		return fmt.Errorf("update %s: %w", id, err)
	}
	return wait.Until(ctx, func(ctx context.Context) error {
		s, err := b.Service(ctx, id)
		if err == nil && (len(s.GetEndpoint().GetPorts()) != 1 || s.Endpoint.Ports[0].TargetPort != port) {
			err = fmt.Errorf("service %s has endpoint %v, want port %d", id, s.GetEndpoint(), port)
		}
		return err
	})
}
