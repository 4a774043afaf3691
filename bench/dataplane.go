package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/musterhq/muster/workerd/network"
)

// dataPlane is a network plugin that does nothing: what is measured is how networks
// reach it.
type dataPlane struct {
	// applied is called with each change. It may be nil.
	applied func(*network.Change)

	mu    sync.Mutex
	tasks map[string]struct{}
}

var _ network.Plugin = (*dataPlane)(nil)

func newDataPlane(applied func(*network.Change)) *dataPlane {
	return &dataPlane{applied: applied, tasks: map[string]struct{}{}}
}

func (*dataPlane) Describe(context.Context) (*network.About, error) {
	return &network.About{Name: "null", Healthy: true, Drivers: []string{"overlay"}, Capabilities: []string{"ingress"}}, nil
}

func (p *dataPlane) Apply(_ context.Context, change *network.Change) (*network.Applied, error) {
	if p.applied != nil {
		p.applied(change)
	}
	return &network.Applied{}, nil
}

func (p *dataPlane) Attach(_ context.Context, t *network.Task) (*network.Attached, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks[t.ID] = struct{}{}
	return &network.Attached{Namespace: cmp.Or(t.Namespace, "/run/netns/null-"+t.ID), Attachments: t.Attachments, Ports: t.Ports}, nil
}

func (p *dataPlane) Detach(_ context.Context, task string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tasks, task)
	return nil
}

func (p *dataPlane) List(context.Context, string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.tasks)), nil
}

func (*dataPlane) Stats(context.Context) (*network.Stats, error) { return &network.Stats{}, nil }

func (*dataPlane) Probe(context.Context, *network.ProbeRequest) (*network.ProbeResponse, error) {
	return &network.ProbeResponse{}, nil
}
