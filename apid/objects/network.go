package objects

import (
	"maps"
	"slices"
	"strings"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Network is a network with what its allocator gave it.
type Network struct {
	ID string
	// Version is that of the user's record.
	Version uint64
	Record  *recordv1.Network
	// State is nil until the allocator has written it.
	State *recordv1.NetworkState

	stateVersion uint64
	// blocks is how many blocks nodes can have in all.
	blocks uint64
}

// Kind is NETWORK.
func (n *Network) Kind() musterv1.ObjectKind { return musterv1.ObjectKind_NETWORK }

// Key is the id.
func (n *Network) Key() string { return n.ID }

// Name is the network's name, unique among networks.
func (n *Network) Name() string { return n.Record.GetSpec().GetName() }

// Labels are those of the spec.
func (n *Network) Labels(*Reader) (map[string]string, bool) {
	return n.Record.GetSpec().GetLabels(), true
}

// Message is the network as users see it.
func (n *Network) Message(r *Reader) proto.Message { return r.NetworkMessage(n) }

func (n *Network) seen(at Point) (known, all bool) {
	tables := at.layout.tables
	known = at.seen(tables.Networks, n.ID, n.Version)
	return known, known && at.seen(tables.NetworkStates, n.ID, n.stateVersion)
}

// networks holds the networks. Leases of blocks are counted, and are no changes of the
// network: watches would be told of each node that gets its first task.
type networks struct {
	tables *state.Tables
	items  btree.Map[string, *Network]
	// ids finds networks by their folded name.
	ids map[string]string
	// leased counts the blocks that nodes have, by network.
	leased map[string]uint64
}

func newNetworks(t *state.Tables) *networks {
	return &networks{tables: t, ids: map[string]string{}, leased: map[string]uint64{}}
}

func (n *networks) presence() sequenced { return n.tables.Networks }

func (n *networks) joined() []sequenced { return []sequenced{n.tables.NetworkStates} }

func (n *networks) advance(changes []Change, from, to *store.Snapshot) []Change {
	changed := map[string]struct{}{}
	for c := range n.tables.Networks.Changes(from, to) {
		changed[c.Key()] = struct{}{}
	}
	for c := range n.tables.NetworkStates.Changes(from, to) {
		changed[c.Key()] = struct{}{}
	}
	for _, id := range slices.Sorted(maps.Keys(changed)) {
		changes = n.put(changes, id, to)
	}
	for c := range n.tables.Blocks.Changes(from, to) {
		network, _, _ := strings.Cut(c.Key(), "/")
		if c.Old == nil {
			n.leased[network]++
		}
		if c.New == nil {
			if n.leased[network]--; n.leased[network] == 0 {
				delete(n.leased, network)
			}
		}
	}
	return changes
}

// put takes over one network as it is in a snapshot.
func (n *networks) put(changes []Change, id string, at *store.Snapshot) []Change {
	next := Change{Kind: musterv1.ObjectKind_NETWORK, ID: id}
	if old, had := n.items.Delete(id); had {
		next.Old = old
		// Another network may have taken the name over in the same step.
		if name := fold(old.Name()); n.ids[name] == id {
			delete(n.ids, name)
		}
	}
	if e, ok := n.tables.Networks.Get(at, id); ok {
		network := &Network{ID: id, Version: e.Version, Record: e.Value}
		if st, ok := n.tables.NetworkStates.Get(at, id); ok {
			network.State, network.stateVersion = st.Value, st.Version
			network.blocks = uint64(st.Value.TotalBlocks)
			// A block whose addresses are all reserved is leased to no node.
			if layout, err := addresses.ReadLayout(st.Value); err == nil {
				network.blocks = uint64(layout.UsableBlocks())
			}
		}
		n.items.Set(id, network)
		n.ids[fold(network.Name())] = id
		next.New = network
	}
	if next.Old == nil && next.New == nil || next.Old != nil && next.New != nil && next.New.(*Network).same(next.Old.(*Network)) {
		return changes
	}
	return append(changes, next)
}

// same reports whether nothing that a user sees has changed. The allocator also notes in
// its record what it gave last.
func (n *Network) same(o *Network) bool {
	return n.Version == o.Version && slices.Equal(n.State.GetSubnets(), o.State.GetSubnets()) &&
		n.State.GetVni() == o.State.GetVni() && n.State.GetTotalBlocks() == o.State.GetTotalBlocks() && n.State.GetError() == o.State.GetError()
}

// Networks calls fn for each network in order of id, from an id on, until it returns
// false.
func (r *Reader) Networks(from string, fn func(*Network) bool) {
	r.v.networks.items.Ascend(from, func(_ string, n *Network) bool { return fn(n) })
}

// Network returns a network by id.
func (r *Reader) Network(id string) (*Network, bool) { return r.v.networks.items.Get(id) }

// FindNetwork resolves an id, a name, or a unique prefix of an id, in this order. The
// network is nil if nothing fits.
func (r *Reader) FindNetwork(ref string) (*Network, error) {
	if n, ok := r.Network(ref); ok {
		return n, nil
	}
	if n, ok := r.Network(r.v.networks.ids[fold(ref)]); ok {
		return n, nil
	}
	return unique(ref, r.Networks, func(n *Network) (string, string) { return n.ID, n.Name() })
}

// NetworkMessage returns a network as users see it in lists.
func (r *Reader) NetworkMessage(n *Network) *musterv1.Network {
	m := &musterv1.Network{
		Id: n.ID, Meta: meta(n.Version, n.Record.CreatedAt, n.Record.UpdatedAt), Spec: n.Record.Spec,
		Status: &musterv1.NetworkStatus{
			Vni: n.State.GetVni(), Error: n.State.GetError(),
			TotalBlocks: n.blocks, LeasedBlocks: r.v.networks.leased[n.ID],
		},
	}
	if subnets := n.State.GetSubnets(); len(subnets) > 0 {
		m.Ipam = &musterv1.IPAMOptions{Driver: n.Record.GetSpec().GetIpam().GetDriver()}
		given := map[string]*musterv1.IPAMConfig{}
		for _, c := range n.Record.GetSpec().GetIpam().GetConfigs() {
			given[c.Subnet] = c
		}
		for _, subnet := range subnets {
			c := given[subnet]
			if c == nil {
				c = &musterv1.IPAMConfig{Subnet: subnet}
			}
			m.Ipam.Configs = append(m.Ipam.Configs, c)
		}
	}
	return m
}

// WholeNetwork returns a network with its blocks and services.
func (r *Reader) WholeNetwork(n *Network) *musterv1.Network {
	m := r.NetworkMessage(n)
	for e := range r.v.tables.Blocks.Scan(r.v.now, n.ID+"/") {
		m.Status.Blocks = append(m.Status.Blocks, &musterv1.NetworkBlock{NodeId: e.Value.NodeId, Subnets: e.Value.Subnets})
	}
	r.Services("", func(s *Service) bool {
		if UsesNetwork(s.Record, r.TaskSpec(s.Record.TaskDigest), s.Record.GetSpec().GetEndpoint(), n.ID) {
			m.Status.ServiceIds = append(m.Status.ServiceIds, s.ID)
		}
		return true
	})
	return m
}

// UsesNetwork reports whether tasks of a service that are made of a task spec, and
// publish the ports of an endpoint spec, are on a network.
func UsesNetwork(s *recordv1.Service, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec, network string) bool {
	return slices.Contains(state.NetworksOf(s, task, endpoint), network)
}

// NetworksOf returns the ids of the networks that tasks of a service are on, in the order
// of its spec; the ingress network comes last.
func (r *Reader) NetworksOf(s *Service) []string {
	return state.NetworksOf(s.Record, r.TaskSpec(s.Record.TaskDigest), s.Record.GetSpec().GetEndpoint())
}

// NodeOn returns a node that is up and runs a task on a network or, if there is none, that
// has a block of it. It returns "" without such a node.
func (r *Reader) NodeOn(network string) (node string) {
	up := func(id string) bool {
		n, ok := r.Node(id)
		return ok && n.State.GetState() == musterv1.NodeStatus_READY
	}
	r.Tasks("", func(t *Task) bool {
		on := slices.ContainsFunc(t.Status.GetNetworks(), func(a *musterv1.NetworkAttachment) bool { return a.NetworkId == network })
		if on && t.State() == musterv1.TaskState_RUNNING && up(t.NodeID) {
			node = t.NodeID
		}
		return node == ""
	})
	if node != "" {
		return node
	}
	for e := range r.v.tables.Blocks.Scan(r.v.now, network+"/") {
		if up(e.Value.NodeId) {
			return e.Value.NodeId
		}
	}
	return ""
}
