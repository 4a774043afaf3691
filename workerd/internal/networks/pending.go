package networks

import (
	"maps"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/workerd/network"
)

// pending says what a plugin has not been told yet. What it is told is made of the newest
// state at that time.
type pending struct {
	// complete says that the plugin must be told everything.
	complete bool
	networks map[string]bool
	// gone are networks that were removed, and may be there again.
	gone            map[string]bool
	peers, services map[member]bool
	// backends are the changes of a service's backends, packed. Nil: all have changed.
	backends map[member][][]byte
}

func newPending(complete bool) pending {
	return pending{
		complete: complete, networks: map[string]bool{}, gone: map[string]bool{},
		peers: map[member]bool{}, services: map[member]bool{}, backends: map[member][][]byte{},
	}
}

// network notes that a network has changed. A plugin that has an earlier network of that
// id, with members of its own, is told everything.
func (p *pending) network(id string) {
	p.networks[id] = true
	p.complete = p.complete || p.gone[id]
}

func (p *pending) removed(id string) {
	p.networks[id], p.gone[id] = true, true
}

// changed adds changes of a service's backends, packed; nil stands for all. All is the
// number of parts that make up all backends.
func (p *pending) changed(m member, changes []byte, all int) {
	switch known, some := p.backends[m]; {
	case some && known == nil:
	case changes == nil, len(known) >= all:
		p.backends[m] = nil
	default:
		p.backends[m] = append(known, changes)
	}
}

// take returns what a plugin must be told now, and the networks that are in it. The
// caller holds n.mu.
func (a *applier) take() (change *network.Change, networks []string) {
	p := a.pending
	a.pending = newPending(false)
	change = &network.Change{Complete: p.complete, Node: a.n.node}
	defer func() {
		for _, id := range networks {
			a.applying[id] = true
		}
	}()
	if p.complete {
		return change, a.takeAll(change)
	}
	for _, id := range slices.Sorted(maps.Keys(p.networks)) {
		switch e := a.served(id); {
		case e != nil:
			change.Networks = append(change.Networks, e.object)
			networks = append(networks, id)
		case a.told[id]:
			change.RemovedNetworks = append(change.RemovedNetworks, id)
			delete(a.told, id)
			delete(a.errors, id)
			delete(a.warnings, id)
		}
	}
	for m := range p.peers {
		if e := a.served(m.network); e == nil {
			continue
		} else if peer := e.peers[m.id]; peer != nil {
			change.Peers = append(change.Peers, peer.object)
		} else {
			change.RemovedPeers = append(change.RemovedPeers, &networkv1.PeerRef{NetworkId: m.network, NodeId: m.id})
		}
	}
	for m := range p.services {
		if e := a.served(m.network); e == nil {
			continue
		} else if s := e.services[m.id]; s != nil && s.object != nil {
			change.Services = append(change.Services, s.object)
		} else {
			change.RemovedServices = append(change.RemovedServices, &networkv1.ServiceRef{NetworkId: m.network, ServiceId: m.id})
		}
	}
	for m, changes := range p.backends {
		e := a.served(m.network)
		if e == nil || e.services[m.id] == nil || e.services[m.id].object == nil {
			continue
		}
		if changes == nil {
			change.Backends = append(change.Backends, e.services[m.id].all(m))
			continue
		}
		change.Backends = append(change.Backends, &network.Backends{NetworkID: m.network, ServiceID: m.id, Changes: changes})
	}
	return change, networks
}

// takeAll puts everything that the plugin serves into a change. What was wrong with a
// network stays wrong until an Apply says otherwise.
func (a *applier) takeAll(change *network.Change) (networks []string) {
	a.told = map[string]bool{}
	maps.DeleteFunc(a.errors, func(id, _ string) bool { return a.served(id) == nil })
	for _, id := range slices.Sorted(maps.Keys(a.n.networks)) {
		e := a.served(id)
		if e == nil {
			continue
		}
		networks = append(networks, id)
		change.Networks = append(change.Networks, e.object)
		for _, p := range e.peers {
			change.Peers = append(change.Peers, p.object)
		}
		for name, s := range e.services {
			if s.object != nil {
				change.Services = append(change.Services, s.object)
				change.Backends = append(change.Backends, s.all(member{id, name}))
			}
		}
	}
	return networks
}

// served returns a network that the plugin serves, or nil.
func (a *applier) served(id string) *entry {
	e := a.n.networks[id]
	if e == nil || e.object == nil || a.current == nil || !a.current.Serves(e.object.GetDriver()) {
		return nil
	}
	return e
}
