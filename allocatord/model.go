package allocatord

import (
	"slices"

	"github.com/musterhq/muster/allocatord/ipam"
	"github.com/musterhq/muster/allocatord/vips"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// model is what the loop of the networks' shards knows: a snapshot, and an index of it by
// network. A change costs what it changes, whatever the number of tasks. It belongs to the
// loop.
type model struct {
	d        *Daemon
	store    *store.Store
	now      *store.Snapshot
	networks map[string]*network
	// tasks holds the assigned tasks that are on networks, by the assignment's key.
	tasks map[string]*task
	// services holds the networks that a service's specs name, by service; none of
	// those that name none. unknown holds services whose task spec has not been seen yet.
	services map[string][]string
	unknown  map[string]struct{}
	// gains are the numbers of the shards' gains since which the index is exact.
	gains map[int]uint64
}

// network is one network.
type network struct {
	id     string
	record *recordv1.Network
	state  *recordv1.NetworkState
	// layout is nil for a network without subnets.
	layout *addresses.Layout
	blocks *ipam.Numbers
	vips   *vips.Pool
	// usableBlocks is how many blocks can be leased in all.
	usableBlocks int
	// leastCapacity is how many addresses a usable block has at least.
	leastCapacity int
	nodes         map[string]*nodeUse
	services      map[string]*serviceUse
	// live is how many tasks are on the network and have not ended.
	live int
	// inexact says that what could not be written was counted in.
	inexact bool
	// dirtyNodes and dirtyServices must be decided on, fullNodes and fullServices when
	// something is released.
	dirtyNodes, dirtyServices, fullNodes, fullServices map[string]struct{}
}

// nodeUse is what a node has and needs of a network.
type nodeUse struct {
	// assigned is how many tasks of the network the node has, and live how many of
	// them have not ended.
	assigned, live int
	// assignedAt is when the newest of them was assigned, in milliseconds.
	assignedAt int64
	blocks     []uint32
	// capacity is how many addresses the blocks have.
	capacity int
}

// serviceUse is what a service has and needs of a network.
type serviceUse struct {
	// live is how many tasks of the service are on the network and have not ended.
	live int
	// named says that a spec of the service names the network.
	named bool
	// stored says that the service's endpoint has an address on the network, or says
	// why it has none.
	stored bool
}

// task is an assigned task.
type task struct {
	networks []string
	live     bool
}

// sweep forgets nodes and services that have and need nothing.
func (n *network) sweep(nodes, services map[string]struct{}) {
	for id := range nodes {
		if use := n.nodes[id]; use != nil && use.assigned == 0 && len(use.blocks) == 0 {
			delete(n.nodes, id)
		}
	}
	for id := range services {
		if use := n.services[id]; use != nil && *use == (serviceUse{}) {
			delete(n.services, id)
		}
	}
}

func newModel(d *Daemon, s *store.Store) *model {
	return &model{
		d: d, store: s, networks: map[string]*network{}, tasks: map[string]*task{},
		services: map[string][]string{}, unknown: map[string]struct{}{}, gains: map[int]uint64{},
	}
}

func (m *model) network(id string) *network {
	n := m.networks[id]
	if n == nil {
		n = &network{
			id: id, nodes: map[string]*nodeUse{}, services: map[string]*serviceUse{},
			dirtyNodes: map[string]struct{}{}, dirtyServices: map[string]struct{}{},
			fullNodes: map[string]struct{}{}, fullServices: map[string]struct{}{},
		}
		m.networks[id] = n
	}
	return n
}

func (n *network) node(id string) *nodeUse {
	if n.nodes[id] == nil {
		n.nodes[id] = &nodeUse{}
	}
	n.dirtyNodes[id] = struct{}{}
	return n.nodes[id]
}

func (n *network) service(id string) *serviceUse {
	if n.services[id] == nil {
		n.services[id] = &serviceUse{}
	}
	n.dirtyServices[id] = struct{}{}
	return n.services[id]
}

// advance moves to a newer snapshot.
func (m *model) advance(to *store.Snapshot) {
	from := m.now
	m.now = to
	t := m.d.tables
	for c := range t.Networks.Changes(from, to) {
		n := m.network(c.Key())
		n.record = nil
		if c.New != nil {
			n.record = c.New.Value
		}
		m.touch(n)
	}
	for c := range t.NetworkStates.Changes(from, to) {
		n := m.network(c.Key())
		if n.stateChanged(c.New) {
			m.restore(n)
		}
	}
	for c := range t.Blocks.Changes(from, to) {
		m.blockChanged(c)
	}
	for c := range t.Assignments.Changes(from, to) {
		m.assignmentChanged(c)
	}
	for c := range t.Statuses.Changes(from, to) {
		if c.New != nil && c.New.Value.State > musterv1.TaskState_RUNNING {
			m.ended(c.New.Key)
		}
	}
	for c := range t.Endpoints.Changes(from, to) {
		m.endpointChanged(c)
	}
	m.servicesChanged(from)
	m.nodesChanged(from)
}

// touch has all nodes and services of a network decided on.
func (m *model) touch(n *network) {
	for id := range n.nodes {
		n.dirtyNodes[id] = struct{}{}
	}
	for id := range n.services {
		n.dirtyServices[id] = struct{}{}
	}
	if n.record.GetSpec().GetIngress() {
		for s := range m.d.tables.NodeStates.Scan(m.now, "") {
			n.dirtyNodes[s.Key] = struct{}{}
		}
	}
}

// stateChanged notes what a network got, and reports whether that differs from before.
func (n *network) stateChanged(e *store.Entry[*recordv1.NetworkState]) bool {
	var to *recordv1.NetworkState
	if e != nil {
		to = e.Value
	}
	from := n.state
	n.state = to
	return (from == nil) != (to == nil) || !state.SameAddresses(from, to)
}

// restore reads who has what of a network, and has everything decided on.
func (m *model) restore(n *network) {
	t := m.d.tables
	n.layout, n.blocks, n.vips, n.usableBlocks = nil, nil, nil, 0
	for _, use := range n.nodes {
		use.blocks, use.capacity = nil, 0
	}
	m.touch(n)
	layout, err := addresses.ReadLayout(n.state)
	if err != nil {
		return // a network without subnets
	}
	n.layout = layout
	n.usableBlocks, n.leastCapacity = int(layout.UsableBlocks()), int(layout.LeastCapacity())
	n.blocks = ipam.NewNumbers(layout.Blocks, n.state.NextBlock, func(k uint32) bool { return layout.Capacity(k) > 0 })
	for b := range t.Blocks.Scan(m.now, n.id+"/") {
		if number, ok := state.BlockNumber(b.Key); ok {
			n.has(b.Value.NodeId, number)
		}
	}
	n.vips = vips.New(n.id, layout, n.state.NextVirtual)
	for id := range n.services {
		if e, ok := t.Endpoints.Get(m.now, id); ok {
			n.vips.Restore(id, e.Value.GetEndpoint().GetVirtualIps())
		}
	}
}

// has notes that a node holds a block.
func (n *network) has(node string, number uint32) {
	if !n.blocks.Restore(number, node) {
		return
	}
	if use := n.node(node); !slices.Contains(use.blocks, number) {
		use.blocks = append(use.blocks, number)
		use.capacity += int(n.layout.Capacity(number))
	}
}

// lost notes that a node no longer holds a block.
func (n *network) lost(node string, number uint32) {
	use := n.node(node)
	if i := slices.Index(use.blocks, number); i >= 0 {
		use.blocks = slices.Delete(use.blocks, i, i+1)
		use.capacity -= int(n.layout.Capacity(number))
	}
	if n.blocks.Holder(number) == node {
		n.blocks.Release(number)
	}
	for id := range n.fullNodes {
		n.dirtyNodes[id] = struct{}{}
	}
}

func (m *model) blockChanged(c store.Change[*recordv1.Block]) {
	id, _, _ := state.SplitKey(c.Key())
	number, ok := state.BlockNumber(c.Key())
	n := m.network(id)
	if !ok || n.layout == nil {
		return
	}
	if c.Old != nil && (c.New == nil || c.New.Value.NodeId != c.Old.Value.NodeId) {
		n.lost(c.Old.Value.NodeId, number)
	}
	if c.New != nil {
		n.has(c.New.Value.NodeId, number)
	}
}

func (m *model) assignmentChanged(c store.Change[*recordv1.Assignment]) {
	if c.New == nil {
		if m.tasks[c.Old.Key] != nil {
			m.ended(c.Old.Key)
			node, _, _ := state.SplitKey(c.Old.Key)
			for _, id := range m.tasks[c.Old.Key].networks {
				m.network(id).node(node).assigned--
			}
			delete(m.tasks, c.Old.Key)
		}
		return
	}
	if len(c.New.Value.Networks) == 0 || m.tasks[c.New.Key] != nil {
		return
	}
	node, service, _ := state.SplitKey(c.New.Key)
	t := &task{networks: c.New.Value.Networks, live: true}
	m.tasks[c.New.Key] = t
	for _, id := range t.networks {
		use := m.network(id).node(node)
		use.assigned++
		use.live++
		m.network(id).live++
		use.assignedAt = max(use.assignedAt, c.New.Value.AssignedAt)
		m.network(id).service(service).live++
	}
	// Tables are followed each for itself, so the status may have been seen first.
	if s, ok := m.d.tables.Statuses.Get(m.now, c.New.Key); ok && s.Value.State > musterv1.TaskState_RUNNING {
		m.ended(c.New.Key)
	}
}

// ended notes that a task has ended and needs no address any longer.
func (m *model) ended(key string) {
	t := m.tasks[key]
	if t == nil || !t.live {
		return
	}
	t.live = false
	node, service, _ := state.SplitKey(key)
	for _, id := range t.networks {
		m.network(id).node(node).live--
		m.network(id).live--
		m.network(id).service(service).live--
	}
}

func (m *model) endpointChanged(c store.Change[*recordv1.Endpoint]) {
	id := c.Key()
	for _, e := range []*store.Entry[*recordv1.Endpoint]{c.Old, c.New} {
		if e == nil {
			continue
		}
		for _, network := range storedNetworks(e.Value) {
			n := m.network(network)
			use := n.service(id)
			present, _ := m.d.tables.Endpoints.Get(m.now, id)
			use.stored = slices.Contains(storedNetworks(present.Value), network)
			if n.vips != nil {
				of := present.Value.GetEndpoint().GetVirtualIps()
				if !slices.ContainsFunc(of, func(v *musterv1.VirtualIP) bool { return v.NetworkId == network }) {
					n.vips.Free(id)
					for waiting := range n.fullServices {
						n.dirtyServices[waiting] = struct{}{}
					}
				}
				n.vips.Restore(id, of)
			}
		}
	}
}

// storedNetworks returns the networks that an endpoint says something of.
func storedNetworks(e *recordv1.Endpoint) []string {
	var ids []string
	for _, v := range e.GetEndpoint().GetVirtualIps() {
		ids = append(ids, v.NetworkId)
	}
	for id := range e.GetNetworkErrors() {
		ids = append(ids, id)
	}
	return ids
}

// servicesChanged notes which networks the specs of changed services name.
func (m *model) servicesChanged(from *store.Snapshot) {
	t := m.d.tables
	changed := map[string]struct{}{}
	for c := range t.Services.Changes(from, m.now) {
		changed[c.Key()] = struct{}{}
	}
	for c := range t.Rollouts.Changes(from, m.now) {
		changed[c.Key()] = struct{}{}
	}
	if len(m.unknown) > 0 {
		for range t.Specs.Changes(from, m.now) {
			for id := range m.unknown {
				changed[id] = struct{}{}
			}
			break
		}
	}
	for id := range changed {
		before := m.services[id]
		named, known := wantedNetworks(t, m.now, id)
		if m.services[id] = named; len(named) == 0 {
			delete(m.services, id)
		}
		if delete(m.unknown, id); !known {
			m.unknown[id] = struct{}{}
		}
		for _, network := range before {
			m.network(network).service(id).named = false
		}
		for _, network := range named {
			m.network(network).service(id).named = true
		}
		// Tasks of other specs may be on networks that no spec names any longer.
		for _, network := range storedNetworks(m.endpoint(id)) {
			m.network(network).service(id)
		}
	}
}

func (m *model) endpoint(service string) *recordv1.Endpoint {
	e, _ := m.d.tables.Endpoints.Get(m.now, service)
	return e.Value
}

// wantedNetworks returns the networks on which a service should have a virtual address:
// those that its spec names, and those of the spec that an update was rolled back to. It
// reports false if a task spec has not been seen yet.
func wantedNetworks(t *state.Tables, r store.Reader, id string) (ids []string, known bool) {
	s, ok := t.Services.Get(r, id)
	if !ok || isDNSRR(t, r, id, s.Value) {
		return nil, true
	}
	rollout, _ := t.Rollouts.Get(r, id)
	known = true
	for _, e := range []state.Effective{state.EffectiveSpec(s.Value, nil), state.EffectiveSpec(s.Value, rollout.Value)} {
		spec, ok := t.Specs.Get(r, state.SpecKey(e.Digest))
		if !ok {
			known = false
			continue
		}
		ids = append(ids, state.NetworksOf(s.Value, spec.Value.Task, e.Endpoint)...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), known
}

// isDNSRR reports whether a service asks for no virtual addresses.
func isDNSRR(t *state.Tables, r store.Reader, id string, s *recordv1.Service) bool {
	return endpointSpec(t, r, id, s).GetMode() == musterv1.EndpointSpec_DNSRR
}

// nodesChanged has the networks of changed nodes decided on.
func (m *model) nodesChanged(from *store.Snapshot) {
	t := m.d.tables
	changed := map[string]struct{}{}
	for c := range t.Nodes.Changes(from, m.now) {
		changed[c.Key()] = struct{}{}
	}
	for c := range t.NodeStates.Changes(from, m.now) {
		changed[c.Key()] = struct{}{}
	}
	if len(changed) == 0 {
		return
	}
	for _, n := range m.networks {
		for id := range changed {
			if n.nodes[id] != nil || n.record.GetSpec().GetIngress() {
				n.dirtyNodes[id] = struct{}{}
			}
		}
	}
}

// removed reports whether an operator has removed a node.
func removed(t *state.Tables, r store.Reader, node string) bool {
	n, _ := t.Nodes.Get(r, node)
	return n.Value.GetRemoved()
}

// takesIngress reports whether a node can answer published ports, or could and may
// again.
func (m *model) takesIngress(n *network, node string) bool {
	reported, ok := m.d.tables.NodeStates.Get(m.now, node)
	if !ok {
		return false
	}
	if use := n.nodes[node]; use != nil && len(use.blocks) > 0 {
		return true
	}
	operator, _ := m.d.tables.Nodes.Get(m.now, node)
	joined := placement.NewNode(node, reported.Value, operator.Value)
	return joined.State == musterv1.NodeStatus_READY && joined.LacksForNetwork(n.record.GetSpec()) == ""
}
