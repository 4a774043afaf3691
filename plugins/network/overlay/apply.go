//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// change is what a request changes of one network.
type change struct {
	network *network
	// fresh networks are compared with the kernel as a whole.
	fresh bool
	links bool
	spec  *networkv1.Network
	// services are the ids of those that change.
	services map[string]bool
	// fewer is set if something no longer leads where it led.
	fewer bool
	// update changes what the network must be.
	update []func()
}

// Apply makes the kernel do what a request says.
func (p *Plugin) Apply(ctx context.Context, request *networkv1.ApplyRequest) (map[string]error, error) {
	p.applying.Lock()
	defer p.applying.Unlock()
	began := time.Now()
	defer func() { p.lastApply.Store(int64(time.Since(began))) }()
	failed := make(map[string]error)
	fail := func(id string, err error) {
		if err != nil {
			failed[id] = errors.Join(failed[id], err)
		}
	}
	p.mu.Lock()
	moved := p.node != nil && !proto.Equal(p.node, request.GetNode())
	p.node = request.GetNode()
	old := maps.Clone(p.networks)
	p.mu.Unlock()

	changes := p.changesOf(request, old, moved)
	for id := range goneNetworks(request, old, changes) {
		delete(changes, id)
		if n := old[id]; n != nil {
			fail(id, p.removeNetwork(n))
		}
	}
	// Which network a task's ports lead into depends on all of its networks.
	p.mu.Lock()
	for id, c := range changes {
		p.networks[id] = c.network
		if c.spec != nil {
			c.network.internal.Store(c.spec.GetInternal())
			c.network.ingress.Store(c.spec.GetIngress())
		}
	}
	p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(changes)) {
		fail(id, p.carryOut(changes[id], request.GetComplete()))
	}
	unnamed, err := p.applyNames(ctx, request)
	if err != nil {
		return failed, err
	}
	for id, err := range unnamed {
		if failed[id] == nil {
			failed[id] = err
		}
	}
	if request.GetComplete() {
		if err := p.verify(request.GetNode().GetId(), changes, fail); err != nil {
			return failed, err
		}
	}
	return failed, nil
}

// changesOf sorts what a request says by network.
func (p *Plugin) changesOf(request *networkv1.ApplyRequest, old map[string]*network, moved bool) map[string]*change {
	changes := make(map[string]*change)
	get := func(id string) *change {
		if c, ok := changes[id]; ok {
			return c
		}
		n, ok := old[id]
		if !ok {
			return nil
		}
		c := &change{network: n, services: make(map[string]bool)}
		changes[id] = c
		return c
	}
	for _, spec := range request.GetNetworks() {
		id := spec.GetId()
		c := get(id)
		if c == nil {
			c = &change{network: newNetwork(p, spec), services: make(map[string]bool), fresh: true}
			changes[id] = c
		}
		c.fresh = c.fresh || request.GetComplete()
		c.links = true
		c.spec = spec
		c.update = append(c.update, func() { c.network.spec = spec })
	}
	if moved {
		for id := range old {
			get(id).links = true
		}
	}
	collect(request, get)
	return changes
}

// goneNetworks returns the ids of networks that the node no longer needs.
func goneNetworks(request *networkv1.ApplyRequest, old map[string]*network, changes map[string]*change) map[string]bool {
	gone := make(map[string]bool)
	for _, id := range request.GetRemovedNetworks() {
		gone[id] = true
	}
	if request.GetComplete() {
		for id := range old {
			if c := changes[id]; c == nil || !c.fresh {
				gone[id] = true
			}
		}
	}
	return gone
}

// verify removes what nothing needs, once the plugin was told of everything, and checks
// what all networks share.
func (p *Plugin) verify(node string, changes map[string]*change, fail func(id string, err error)) error {
	err := p.removeLeftovers(node)
	if broken := p.tunnel.Verify(node); broken != nil {
		broken = fmt.Errorf("encrypt traffic between nodes: %w", broken)
		encrypted := false
		for id, c := range changes {
			if c.spec.GetEncrypted() {
				encrypted = true
				fail(id, broken)
			}
		}
		if !encrypted {
			err = errors.Join(err, broken)
		}
	}
	if err != nil {
		return err
	}
	for id := range changes {
		fail(id, p.edge.conflict(id))
	}
	return nil
}

// collect sorts what a request says of peers, services and backends by network.
func collect(request *networkv1.ApplyRequest, get func(string) *change) {
	for _, peer := range request.GetPeers() {
		if c := get(peer.GetNetworkId()); c != nil {
			c.links = true
			c.update = append(c.update, func() { c.network.peers[peer.GetNodeId()] = peer })
		}
	}
	for _, ref := range request.GetRemovedPeers() {
		if c := get(ref.GetNetworkId()); c != nil {
			c.links = true
			c.update = append(c.update, func() { delete(c.network.peers, ref.GetNodeId()) })
		}
	}
	for _, s := range request.GetServices() {
		if c := get(s.GetNetworkId()); c != nil {
			c.services[s.GetId()] = true
			c.fewer = true
			c.update = append(c.update, func() {
				if have := c.network.services[s.GetId()]; have != nil {
					have.spec = s
				} else {
					c.network.services[s.GetId()] = &service{spec: s, backends: make(map[string]*networkv1.Backend)}
				}
			})
		}
	}
	for _, ref := range request.GetRemovedServices() {
		if c := get(ref.GetNetworkId()); c != nil {
			c.services[ref.GetServiceId()] = true
			c.fewer = true
			c.update = append(c.update, func() { delete(c.network.services, ref.GetServiceId()) })
		}
	}
	for _, b := range request.GetBackends() {
		if c := get(b.GetNetworkId()); c != nil {
			c.services[b.GetServiceId()] = true
			c.fewer = c.fewer || b.GetComplete() || len(b.GetRemoved()) > 0
			c.update = append(c.update, func() { mergeBackends(c.network.services[b.GetServiceId()], b) })
		}
	}
}

func mergeBackends(s *service, b *networkv1.Backends) {
	if s == nil {
		return
	}
	if b.GetComplete() {
		s.backends = make(map[string]*networkv1.Backend, len(b.GetBackends()))
	}
	for _, one := range b.GetBackends() {
		s.backends[one.GetTaskId()] = one
	}
	for _, id := range b.GetRemoved() {
		delete(s.backends, id)
	}
}

// carryOut changes one network.
func (p *Plugin) carryOut(c *change, complete bool) error {
	stale, err := p.changeNetwork(c, complete)
	return errors.Join(err, stale())
}

// changeNetwork changes one network. The function that it returns removes connections that
// lead nowhere.
func (p *Plugin) changeNetwork(c *change, complete bool) (stale func() error, err error) {
	n := c.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if complete {
		n.peers, n.services = make(map[string]*networkv1.Peer), make(map[string]*service)
	}
	for _, update := range c.update {
		update()
	}
	p.mu.Lock()
	n.node = p.node
	for _, t := range p.tasks {
		if t.addressesOn(n.id) != nil {
			n.tasks[t.id] = t
		}
	}
	p.mu.Unlock()
	stale = func() error { return nil }
	switch {
	case c.fresh || !n.ready:
		if n.overlap, err = link.Overlap(p.host, n.subnets()); err == nil {
			err = n.ensureAll()
		}
		if n.sandbox != nil {
			err = errors.Join(err, networksdk.Warning(n.overlap))
		}
		return n.staleFlows(), err
	case c.links:
		if err := n.ensureLinks(); err != nil {
			return stale, err
		}
		err = n.eachTable(func(six bool, t *ruleset.Table) error {
			n.putAll(t, six)
			return t.Commit()
		})
		err = errors.Join(err, p.edge.update(n))
	case len(c.services) > 0:
		err = n.ensureServices(c.services)
	}
	if c.fewer {
		stale = n.staleFlows()
	}
	return stale, err
}

// removeNetwork removes a network.
func (p *Plugin) removeNetwork(n *network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.remove(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.networks, n.id)
	return nil
}

// removeLeftovers removes what no network and no task of the node has.
func (p *Plugin) removeLeftovers(node string) error {
	paths, err := p.spaces(node)
	if err != nil {
		return err
	}
	p.mu.Lock()
	needed, known := make(map[string]bool), make(map[string]bool)
	for id := range p.networks {
		needed[p.pathOf(node, id)] = true
		known[id] = true
	}
	p.mu.Unlock()
	var errs []error
	for _, path := range paths {
		if !needed[path] {
			errs = append(errs, p.removePath(path))
		}
	}
	_, err = p.edge.verify(node, known)
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("remove what is no longer needed: %w", err)
	}
	return nil
}
