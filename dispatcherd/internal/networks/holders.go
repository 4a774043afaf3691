package networks

import (
	"cmp"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// holder is a node that has blocks of a network.
type holder struct {
	// blocks are in the order in which the node got them.
	blocks []store.Entry[*recordv1.Block]
	// prefixes are the subnets of all blocks.
	prefixes []netip.Prefix
	// version is that of the last change of blocks.
	version uint64
	// message is the network as the node gets it. It is nil if it must be made again.
	message *networkv1.Network
}

// subnets returns the subnets of the blocks in CIDR notation.
func (h *holder) subnets() []string {
	var all []string
	for _, b := range h.blocks {
		all = append(all, b.Value.Subnets...)
	}
	return all
}

// followNetworks continues with the networks, their states and blocks.
func (a *advance) followNetworks() {
	t := a.tables
	for c := range t.Networks.Changes(a.from, a.to) {
		a.setNetwork(c.Key(), func(n *network) {
			n.record = nil
			if c.New != nil {
				n.record = c.New.Value
			}
		})
	}
	for c := range t.NetworkStates.Changes(a.from, a.to) {
		a.setNetwork(c.Key(), func(n *network) {
			n.state = nil
			if c.New != nil {
				n.state = c.New.Value
			}
		})
	}
	for c := range t.Blocks.Changes(a.from, a.to) {
		id, _, _ := state.SplitKey(c.Key())
		n := a.network(id)
		if c.Old != nil {
			a.returnBlock(n, *c.Old)
		}
		if c.New != nil {
			a.leaseBlock(n, *c.New)
		}
	}
}

// setNetwork changes the records of a network. If they then say something else to nodes,
// its object has changed for all of them. Most changes concern only the allocator.
func (a *advance) setNetwork(id string, change func(*network)) {
	n := a.network(id)
	before := n.message()
	change(n)
	if proto.Equal(before, n.message()) {
		return
	}
	a.version++
	n.version = a.version
	for node, h := range n.holders {
		h.message = nil
		a.change(node, n.id)
	}
	// The nodes of a network without blocks are those that read it.
	for r := range n.readers {
		a.change(r.node, n.id)
	}
	if n.state != nil && len(n.state.Subnets) == 0 {
		a.appeared = true
		for _, t := range a.tasks {
			a.staleTasks[t.key] = struct{}{}
		}
	}
}

func (a *advance) leaseBlock(n *network, b store.Entry[*recordv1.Block]) {
	node := b.Value.NodeId
	h := n.holders[node]
	if h == nil {
		h = &holder{}
		n.holders[node] = h
		a.node(node).networks[n.id] = struct{}{}
	}
	h.blocks = append(h.blocks, b)
	slices.SortStableFunc(h.blocks, func(a, b store.Entry[*recordv1.Block]) int {
		return cmp.Or(cmp.Compare(a.Value.LeasedAt, b.Value.LeasedAt), cmp.Compare(a.Key, b.Key))
	})
	a.blocksChanged(n, node, h)
}

func (a *advance) returnBlock(n *network, b store.Entry[*recordv1.Block]) {
	node := b.Value.NodeId
	h := n.holders[node]
	if h == nil {
		return
	}
	h.blocks = slices.DeleteFunc(h.blocks, func(have store.Entry[*recordv1.Block]) bool { return have.Key == b.Key })
	if len(h.blocks) == 0 {
		delete(n.holders, node)
		if known := a.nodes[node]; known != nil {
			delete(known.networks, n.id)
			a.forgetNode(node)
		}
	}
	a.blocksChanged(n, node, h)
}

func (a *advance) blocksChanged(n *network, node string, h *holder) {
	a.version++
	h.version, h.message = a.version, nil
	for _, p := range h.prefixes {
		if n.owners[p] == node {
			delete(n.owners, p)
		}
	}
	h.prefixes = nil
	for _, text := range h.subnets() {
		if p, err := netip.ParsePrefix(text); err == nil {
			h.prefixes = append(h.prefixes, p)
			n.owners[p] = node
		}
	}
	// Tables are followed each for itself, so the addresses of tasks may have come first.
	if known := a.nodes[node]; known != nil {
		for key := range known.tasks {
			a.staleTasks[key] = struct{}{}
		}
	}
	a.change(node, n.id)
	a.setPeer(n, node)
}

// followNodes continues with what nodes say of themselves, and with whether they are
// alive.
func (a *advance) followNodes() {
	for c := range a.tables.NodeStates.Changes(a.from, a.to) {
		known := a.nodes[c.Key()]
		if known == nil {
			continue
		}
		for id := range known.networks {
			a.setPeer(a.network(id), c.Key())
		}
		var old, new *recordv1.NodeState
		if c.Old != nil {
			old = c.Old.Value
		}
		if c.New != nil {
			new = c.New.Value
		}
		if reachable(old) != reachable(new) {
			for key := range known.tasks {
				a.staleTasks[key] = struct{}{}
			}
		}
	}
}

// reachable reports whether the tasks of a node get traffic. The node may be removed.
func reachable(n *recordv1.NodeState) bool {
	return n != nil && n.State != musterv1.NodeStatus_DOWN
}

// setPeer joins a node with its blocks of a network.
func (a *advance) setPeer(n *network, node string) {
	key := memberKey{node: node}
	h := n.holders[node]
	e, _ := a.tables.NodeStates.Get(a.to, node)
	path := e.Value.GetDescription().GetDataPath()
	if h == nil || path == nil {
		n.set(key, nil, 0)
		return
	}
	n.set(key, &networkv1.Peer{
		NetworkId: n.id, NodeId: node, DataPathAddress: path.Address, DataPathPort: path.Port,
		Blocks: h.subnets(), PublicKey: path.PublicKey, EncryptedPort: path.EncryptedPort,
	}, 0)
}

// object returns a network as a node gets it.
func (x *Index) object(node, id string) assignments.Object {
	o := assignments.Object{Ref: assignments.Ref{Kind: assignments.KindNetwork, ID: id}}
	n := x.networks[id]
	if n == nil || !n.allocated() {
		return o
	}
	o.Version, o.Members = n.version, members{x, node, id}
	h := n.holders[node]
	switch {
	case h != nil:
		if h.message == nil {
			h.message = n.message()
			h.message.Blocks = h.subnets()
		}
		o.Version, o.Message, o.Held = max(o.Version, h.version), h.message, true
	case len(n.state.Subnets) == 0:
		// The driver chooses addresses itself.
		o.Message = n.message()
	}
	return o
}

// allocated reports whether nodes can have the network.
func (n *network) allocated() bool { return n.record != nil && n.state != nil && n.state.Error == "" }

// message returns the network without what differs between nodes, and nil if none can
// have it.
func (n *network) message() *networkv1.Network {
	if !n.allocated() {
		return nil
	}
	spec := n.record.GetSpec()
	return &networkv1.Network{
		Id: n.id, Name: spec.GetName(),
		Driver: cmp.Or(spec.GetDriver().GetName(), defaults.NetworkDriver), DriverOptions: spec.GetDriver().GetOptions(),
		Subnets: n.state.Subnets, Vni: n.state.Vni, Mtu: spec.GetMtu(),
		Internal: spec.GetInternal(), Ingress: spec.GetIngress(), Encrypted: spec.GetEncrypted(),
		ReservedAddresses: n.state.Reserved,
	}
}

// MayOwn reports whether a worker may say that a task has the addresses of an
// attachment: there is at most one of each family, they lie in the network, and in no
// block of another node. An address may lie in a block that is not seen yet: tables are
// followed each for itself. Until the block is seen, the task gets no traffic. Networks
// without subnets have no blocks, and their drivers choose any address.
func (x *Index) MayOwn(node string, a *musterv1.NetworkAttachment) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.networks[a.NetworkId]
	families := map[bool]bool{}
	for _, text := range a.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() || families[addr.Is4()] {
			return false
		}
		families[addr.Is4()] = true
		if n == nil || n.state == nil || len(n.state.Subnets) == 0 {
			continue
		}
		if !n.contains(addr) {
			return false
		}
		if owner := n.owner(addr); owner != "" && owner != node {
			return false
		}
	}
	return true
}

// contains reports whether an address lies in a subnet of the network.
func (n *network) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(n.state.Subnets, func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(addr)
	})
}

// owner returns the node that has a block with an address; empty if none is known.
func (n *network) owner(addr netip.Addr) string {
	// The blocks of a network have one size for each family.
	for _, h := range n.holders {
		for _, sample := range h.prefixes {
			if sample.Addr().Is4() != addr.Is4() {
				continue
			}
			if p, err := addr.Prefix(sample.Bits()); err == nil {
				return n.owners[p]
			}
		}
	}
	return ""
}

// owns reports whether a node has blocks with all of the addresses of a task, or the
// network's driver chooses addresses itself.
func (n *network) owns(node string, addresses []string) bool {
	h := n.holders[node]
	if h == nil {
		return n.state != nil && len(n.state.Subnets) == 0
	}
	return !slices.ContainsFunc(addresses, func(text string) bool {
		addr, err := netip.ParseAddr(text)
		return err != nil || !slices.ContainsFunc(h.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	})
}
