package simulation

import (
	"maps"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/plugins/nullnetwork"
)

// routed checks that each node that is alive sends traffic where the records say: to the
// nodes that have blocks of its networks, and to the tasks that run there.
func (p *picture) routed() {
	t := p.observer.tables
	backends := p.backends()
	blocks := map[string]map[string][]string{} // subnets by network and node
	for b := range t.Blocks.Scan(p.now, "") {
		id, _, _ := state.SplitKey(b.Key)
		if blocks[id] == nil {
			blocks[id] = map[string][]string{}
		}
		blocks[id][b.Value.NodeId] = append(blocks[id][b.Value.NodeId], b.Value.Subnets...)
	}
	for name, n := range p.cluster.nodes {
		if s, ok := t.NodeStates.Get(p.now, name); !ok || s.Value.State != musterv1.NodeStatus_READY {
			continue
		}
		has := n.routes()
		for id, holders := range blocks {
			if _, holds := holders[name]; !holds {
				continue
			}
			network := has[id]
			if network == nil {
				p.fault("node %s has a block of network %s, and its plugin does not know it", name, short(id))
				continue
			}
			p.peersOf(name, id, network, holders)
			for service, want := range backends[id] {
				got := map[string]*networkv1.Backend{}
				if s := network.Services[service]; s != nil {
					got = s.Backends
				}
				if g := slices.Sorted(maps.Keys(got)); !slices.Equal(g, want) {
					p.fault("node %s sends the traffic of service %s on network %s to %v, want %v", name, short(service), short(id), g, want)
				}
			}
			for service, s := range network.Services {
				if len(s.Backends) > 0 && len(backends[id][service]) == 0 {
					p.fault("node %s sends the traffic of service %s on network %s to %v, want nothing", name, short(service), short(id), slices.Sorted(maps.Keys(s.Backends)))
				}
			}
		}
		for id := range has {
			if _, holds := blocks[id][name]; !holds {
				p.fault("node %s has no block of network %s, and its plugin knows it", name, short(id))
			}
		}
	}
}

// peersOf checks the peers that a node has on a network.
func (p *picture) peersOf(name, id string, network *nullnetwork.Network, holders map[string][]string) {
	for peer, subnets := range holders {
		s, ok := p.observer.tables.NodeStates.Get(p.now, peer)
		want := peer != name && ok && s.Value.GetDescription().GetDataPath() != nil
		got := network.Peers[peer]
		if (got != nil) != want || want && !sameSet(got.Blocks, subnets) {
			p.fault("node %s has peer %v on network %s, want node %s with blocks %v: %t", name, got, short(id), peer, subnets, want)
		}
	}
	for peer := range network.Peers {
		if holders[peer] == nil {
			p.fault("node %s has peer %s on network %s, which has no block of it", name, peer, short(id))
		}
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// backends returns the tasks that get traffic, by network and service.
func (p *picture) backends() map[string]map[string][]string {
	all := map[string]map[string][]string{}
	for service, tasks := range p.tasks {
		for _, task := range tasks {
			node, ok := p.observer.tables.NodeStates.Get(p.now, task.NodeID)
			health := task.Status.GetRuntime().GetHealth().GetState()
			if !ok || node.Value.State == musterv1.NodeStatus_DOWN || task.State() != musterv1.TaskState_RUNNING || !task.Live() ||
				health == musterv1.Health_STARTING || health == musterv1.Health_UNHEALTHY {
				continue
			}
			for _, at := range task.Status.Networks {
				if len(at.Addresses) == 0 {
					continue
				}
				if all[at.NetworkId] == nil {
					all[at.NetworkId] = map[string][]string{}
				}
				all[at.NetworkId][service] = append(all[at.NetworkId][service], task.ID)
			}
		}
	}
	for _, services := range all {
		for _, ids := range services {
			slices.Sort(ids)
		}
	}
	return all
}

// routes returns what the node's network plugin was told.
func (n *node) routes() map[string]*nullnetwork.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kernel == nil {
		return nil
	}
	return n.kernel.Networks()
}
