//go:build linux

package overlay

import (
	"context"
	"maps"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/resident"
)

// ServeNames makes this process the one that answers for names if its arguments say so, and
// does not return then. A program that holds a Plugin calls it first in main, because the
// plugin starts the program again for this.
func ServeNames(args []string, log *zap.Logger) { resident.Main(args, log) }

// newNames returns what talks to the process that answers for names.
func (p *Plugin) newNames() *resident.Client {
	return resident.NewClient(resident.Config{
		Dir: filepath.Join(p.config.StateDir, "names"), Host: p.config.Host, Namespaces: p.config.Namespaces, Machine: p.config.Machine,
		Resolvers: p.config.Resolvers,
	}, p.model, p.log)
}

// model returns all that the process must know. It is empty until a complete request was
// carried out: a part of it would make the process forget the others.
func (p *Plugin) model() resident.Model {
	m := resident.Model{Complete: &networkv1.ApplyRequest{Complete: true}}
	p.mu.Lock()
	if !p.known {
		p.mu.Unlock()
		return m
	}
	m.Complete.Node = p.node
	networks := slices.Collect(maps.Values(p.networks))
	for _, t := range p.tasks {
		if t.node == p.node.GetId() {
			m.Tasks = append(m.Tasks, t.request)
		}
	}
	p.mu.Unlock()
	for _, n := range networks {
		n.describe(m.Complete)
	}
	return m
}

// describe adds the network to a request.
func (n *network) describe(r *networkv1.ApplyRequest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r.Networks = append(r.Networks, n.spec)
	for id, s := range n.services {
		r.Services = append(r.Services, s.spec)
		r.Backends = append(r.Backends, &networkv1.Backends{
			NetworkId: n.id, ServiceId: id, Complete: true, Backends: slices.Collect(maps.Values(s.backends)),
		})
	}
}

// applyNames tells the process of a change that was made.
func (p *Plugin) applyNames(ctx context.Context, request *networkv1.ApplyRequest) (map[string]error, error) {
	p.mu.Lock()
	p.known = p.known || request.GetComplete()
	last := len(p.networks) == 0
	p.mu.Unlock()
	return p.names.Apply(ctx, request, last)
}
