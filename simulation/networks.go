package simulation

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const (
	// networkedServices is how many services on networks a user has at most, and
	// networkedReplicas how many tasks one has.
	networkedServices, networkedReplicas = 3, 8
	// ingressNetwork is the name of the network that apid creates for published ports. The
	// first user removes it in the end.
	ingressNetwork = "ingress"
)

// ownedNetwork returns the beginning of the names of a user's networks.
func ownedNetwork(user int) string { return fmt.Sprintf("n%d-", user) }

// networkSpec returns a network: from the pool, or so small that it gets full.
func networkSpec(name string, client, number int) *musterv1.NetworkSpec {
	s := &musterv1.NetworkSpec{Name: name, Ipv6Enabled: number%4 == 1}
	if number%3 == 2 {
		s.Ipam = &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{
			Subnet: fmt.Sprintf("10.%d.%d.0/28", client, number), Gateway: fmt.Sprintf("10.%d.%d.9", client, number),
		}}}
	}
	return s
}

// addNetworks adds what users do with networks and groups, in streams of their own.
func (s *Script) addNetworks(size Size) {
	if size.Calls == 0 || !size.Networks {
		return
	}
	size.Replicas = min(size.Replicas, networkedReplicas)
	for client := range size.Clients {
		r := rand.New(rand.NewPCG(s.Seed, 5<<32+uint64(client)))
		w := &writer{Rand: r, size: size, client: client, services: map[string]*musterv1.ServiceSpec{}}
		groups := rand.New(rand.NewPCG(s.Seed, 6<<32+uint64(client)))
		var networks []string
		for at := 3 * time.Second; at < size.Length; at += w.pause(2 * size.Calls) {
			step := w.networkStep(&networks, groups)
			step.At, step.Client, step.API = at, client, replica("apid", 1+r.IntN(size.Managers))
			if size.Faults > 0 && one(r, 12) {
				step.Twin = replica("apid", 1+r.IntN(size.Managers))
			}
			s.Steps = append(s.Steps, step)
		}
	}
}

func (w *writer) networkStep(networks *[]string, groups *rand.Rand) Step {
	w.made++
	names := slices.Sorted(maps.Keys(w.services))
	switch n := w.IntN(10); {
	case len(*networks) == 0 || n == 0:
		name := fmt.Sprint(ownedNetwork(w.client), w.made)
		*networks = append(*networks, name)
		return Step{Op: createNetwork, Who: name, Client: w.client, N: w.made}
	case n == 1:
		at := w.IntN(len(*networks))
		name := (*networks)[at]
		*networks = slices.Delete(*networks, at, at+1)
		return Step{Op: removeNetwork, Who: name}
	case len(names) == 0 || len(names) < networkedServices && n < 4:
		spec := newSpec(w.Rand, fmt.Sprintf("s%d-n%d", w.client, w.made), w.size)
		w.connect(spec, *networks)
		addGroup(groups, spec.Task)
		w.label(spec)
		w.services[spec.Name] = spec
		return Step{Op: create, Who: spec.Name, Spec: clone(spec)}
	}
	spec := w.services[pick(w.Rand, names)]
	switch n := w.IntN(10); {
	case n < 3 && spec.GetReplicated() != nil:
		spec.Mode = replicated(w.IntN(w.size.Replicas + 1))
		return Step{Op: scale, Who: spec.Name, N: int(spec.GetReplicated().GetReplicas())}
	case n < 5:
		delete(w.services, spec.Name)
		return Step{Op: remove, Who: spec.Name}
	default:
		if one(w.Rand, 2) {
			change(w.Rand, spec)
		}
		w.connect(spec, *networks)
		addGroup(groups, spec.Task)
		w.label(spec)
		return Step{Op: update, Who: spec.Name, Spec: clone(spec)}
	}
}

// connect draws a service's networks and what it publishes.
func (w *writer) connect(s *musterv1.ServiceSpec, networks []string) {
	s.Task.Networks, s.Endpoint = nil, &musterv1.EndpointSpec{}
	for _, name := range networks {
		if len(s.Task.Networks) < 2 && !one(w.Rand, 3) {
			s.Task.Networks = append(s.Task.Networks, &musterv1.NetworkAttachmentConfig{Target: name})
		}
	}
	switch w.IntN(3) {
	case 0:
		s.Endpoint.Mode = musterv1.EndpointSpec_DNSRR
	case 1:
		s.Endpoint.Ports = append(s.Endpoint.Ports, &musterv1.PortConfig{TargetPort: 80, PublishMode: musterv1.PortConfig_INGRESS})
		if one(w.Rand, 2) {
			s.Endpoint.Ports[0].PublishedPort = uint32(8100 + w.IntN(4))
		}
	}
}

func (u *user) createNetwork(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: networkSpec(s.Who, s.Client, s.N)})
	return func(accepted bool) { note(&v.there, accepted, true) }, err
}

func (u *user) removeNetwork(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.RemoveNetwork(ctx, &musterv1.RemoveNetworkRequest{Network: s.Who})
	return func(accepted bool) { note(&v.there, accepted, false) }, err
}

// checkNetworks says where the networks that there are differ from what was accepted.
func (u *user) checkNetworks(there map[string]*recordv1.Network) (faults []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, v := range u.networks {
		if is := there[name] != nil; name != ingressNetwork && v.calling == 0 && !slices.Contains(v.there, is) {
			faults = append(faults, fmt.Sprintf("network %s is there: %t; accepted was %v", name, is, v.there))
		}
	}
	return faults
}

// connections prepares the usages to count addresses.
func (p *picture) connections() {
	t := p.observer.tables
	p.counted, p.networks = placement.NewNetworks(), map[string]*recordv1.Network{}
	for e := range t.Networks.Scan(p.now, "") {
		p.networks[e.Value.Spec.Name] = e.Value
		s, _ := t.NetworkStates.Get(p.now, e.Key)
		p.counted.Network(e.Key).Set(e.Value.Spec, s.Value)
	}
	p.usage = map[string]*placement.Usage{}
	for e := range t.NodeStates.Scan(p.now, "") {
		p.use(e.Key)
	}
	for e := range t.Blocks.Scan(p.now, "") {
		id, _, _ := state.SplitKey(e.Key)
		if number, ok := state.BlockNumber(e.Key); ok {
			p.use(e.Value.NodeId).AddBlock(id, number)
		}
	}
}

// use returns the usage of a node.
func (p *picture) use(node string) *placement.Usage {
	if p.usage[node] == nil {
		p.usage[node] = placement.NewUsage()
		p.usage[node].SetNetworks(p.counted)
	}
	return p.usage[node]
}

// request returns what tasks of a spec ask of a node.
func (p *picture) request(id string, s *recordv1.Service, spec *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) (*placement.Request, error) {
	r, err := placement.NewRequest(id, spec, endpoint)
	if err != nil {
		return nil, err
	}
	if ids := state.NetworksOf(s, spec, endpoint); len(ids) > 0 {
		networks := make([]*placement.Network, len(ids))
		for i, network := range ids {
			networks[i] = p.counted.Network(network)
		}
		r.Join(networks)
	}
	return r, nil
}

// allocated checks that nothing that is unique has two holders.
func (p *picture) allocated() {
	t := p.observer.tables
	vnis, subnets := map[uint32]string{}, map[string]netip.Prefix{}
	for e := range t.NetworkStates.Scan(p.now, "") {
		if other := vnis[e.Value.Vni]; other != "" && e.Value.Vni != 0 {
			p.fault("networks %s and %s both have identifier %d", short(other), short(e.Key), e.Value.Vni)
		}
		vnis[e.Value.Vni] = e.Key
		for _, cidr := range e.Value.Subnets {
			prefix, err := netip.ParsePrefix(cidr)
			if err != nil {
				p.fault("network %s has subnet %q", short(e.Key), cidr)
				continue
			}
			for other, has := range subnets {
				if has.Overlaps(prefix) {
					p.fault("subnet %s of network %s overlaps with %s of %s", prefix, short(e.Key), has, short(other))
				}
			}
			subnets[e.Key+" "+cidr] = prefix
		}
	}
	for e := range t.Blocks.Scan(p.now, "") {
		id, _, _ := state.SplitKey(e.Key)
		s, _ := t.NetworkStates.Get(p.now, id)
		layout, err := addresses.ReadLayout(s.Value)
		number, ok := state.BlockNumber(e.Key)
		if err != nil || !ok || number >= layout.Blocks || !slices.Equal(layout.Block(number).Strings(), e.Value.Subnets) {
			p.fault("block %s of %s has subnets %v, which are not the network's", e.Key, e.Value.NodeId, e.Value.Subnets)
		}
	}
}

// networksSettled checks that everything that needs addresses and ports has them, and that
// nothing else has.
func (p *picture) networksSettled() {
	t := p.observer.tables
	layouts := map[string]*addresses.Layout{}
	ingress := map[string]bool{}
	for e := range t.Networks.Scan(p.now, "") {
		s, _ := t.NetworkStates.Get(p.now, e.Key)
		layout, err := addresses.ReadLayout(s.Value)
		if err != nil {
			p.fault("network %s has no subnets: %v: %v", e.Value.Spec.Name, s.Value, err)
			continue
		}
		layouts[e.Key], ingress[e.Key] = layout, e.Value.Spec.Ingress
	}
	// Tasks of an earlier spec may be on a network that is gone, while an update waits.
	blocks, held := map[string]bool{}, map[string]bool{}
	for e := range t.Blocks.Scan(p.now, "") {
		id, _, _ := state.SplitKey(e.Key)
		blocks[id+" "+e.Value.NodeId], held[id] = true, true
	}
	for e := range t.NetworkStates.Scan(p.now, "") {
		if _, ok := t.Networks.Get(p.now, e.Key); !ok && !held[e.Key] {
			p.fault("network %s is gone, and keeps its subnets", short(e.Key))
		}
	}
	assigned := map[string]bool{}
	for e := range t.Assignments.Scan(p.now, "") {
		node, _, task := state.SplitKey(e.Key)
		p.addressed(e.Key, e.Value, layouts)
		for _, id := range e.Value.Networks {
			assigned[id+" "+node] = true
			s, ok := t.Statuses.Get(p.now, e.Key)
			if ended := ok && s.Value.State > musterv1.TaskState_RUNNING; !ended && layouts[id] != nil && !blocks[id+" "+node] {
				p.fault("task %s is on network %s, of which its node %s has no block", short(task), short(id), node)
			}
		}
	}
	for at := range blocks {
		id, node, _ := strings.Cut(at, " ")
		if _, known := t.NodeStates.Get(p.now, node); !assigned[at] && (!ingress[id] || !known) {
			p.fault("node %s has a block of network %s, of which it has no task", node, short(id))
		}
	}
	for id, s := range p.services {
		p.endpointSettled(id, s, layouts)
	}
}

// addressed checks that a task that runs has addresses on its networks, in blocks of its
// node. Without them it gets no traffic.
func (p *picture) addressed(key string, a *recordv1.Assignment, layouts map[string]*addresses.Layout) {
	t := p.observer.tables
	node, _, task := state.SplitKey(key)
	s, ok := t.Statuses.Get(p.now, key)
	if !ok || s.Value.State != musterv1.TaskState_RUNNING || stateOf(p.nodes[node]) != musterv1.NodeStatus_READY {
		return
	}
	for _, id := range a.Networks {
		at := slices.IndexFunc(s.Value.Networks, func(n *musterv1.NetworkAttachment) bool { return n.NetworkId == id })
		if at < 0 {
			p.fault("task %s runs on %s without an address of network %s", short(task), node, short(id))
			continue
		}
		for _, text := range s.Value.Networks[at].Addresses {
			inside := false
			for b := range t.Blocks.Scan(p.now, id+"/") {
				number, _ := state.BlockNumber(b.Key)
				r := layouts[id]
				if b.Value.NodeId == node && r != nil {
					_, in := r.Block(number).Offset(netip.MustParseAddr(text))
					inside = inside || in
				}
			}
			if !inside {
				p.fault("task %s runs on %s with address %s of network %s, which is in no block of the node", short(task), node, text, short(id))
			}
		}
	}
}

// endpointSettled checks that a service has what its spec asks for.
func (p *picture) endpointSettled(id string, s *recordv1.Service, layouts map[string]*addresses.Layout) {
	t := p.observer.tables
	e, _ := t.Endpoints.Get(p.now, id)
	rollout, _ := t.Rollouts.Get(p.now, id)
	effective := state.EffectiveSpec(s, rollout.Value)
	asked := effective.Endpoint.GetPorts()
	if got := e.Value.GetEndpoint().GetPorts(); len(got) != len(asked) && e.Value.GetError() == "" {
		p.fault("service %s publishes %v, and asks for %v", s.Spec.Name, got, asked)
	}
	has := map[string]bool{}
	for _, v := range e.Value.GetEndpoint().GetVirtualIps() {
		has[v.NetworkId] = true
	}
	for network := range e.Value.GetNetworkErrors() {
		has[network] = true
	}
	wants, may := map[string]bool{}, map[string]bool{}
	if effective.Endpoint.GetMode() != musterv1.EndpointSpec_DNSRR {
		for _, of := range []state.Effective{effective, state.EffectiveSpec(s, nil)} {
			for _, network := range state.NetworksOf(s, p.task(of.Digest), of.Endpoint) {
				wants[network] = true
			}
		}
		for _, task := range p.tasks[id] {
			for _, network := range task.Assignment.GetNetworks() {
				if !task.Terminal() {
					// Those of an earlier spec may have had none.
					may[network] = true
				}
			}
		}
	}
	for network := range layouts {
		if has[network] != wants[network] && (wants[network] || !may[network]) {
			p.fault("service %s has a virtual address on network %s: %t, want %t", s.Spec.Name, short(network), has[network], wants[network])
		}
	}
}

// noNetworks says what is left of networks after all were removed.
func (p *picture) noNetworks() {
	t := p.observer.tables
	for name := range p.networks {
		p.fault("network %s is left", name)
	}
	for e := range t.NetworkStates.Scan(p.now, "") {
		p.fault("subnets of network %s are left", short(e.Key))
	}
	for e := range t.Blocks.Scan(p.now, "") {
		p.fault("block %s is left", e.Key)
	}
}

// takenBlock is a block that was taken from a node, which has a task on its network.
type takenBlock struct {
	network, node, assignment string
	number                    uint32
	// seen says that the task was seen with an address of the block.
	seen bool
}

// allocations notes the blocks that are taken from nodes that have tasks on their networks.
// That says little yet: such a task may have come after the block was taken, or have ended
// before, since snapshots may show changes of several shards in another order.
func (o *observer) allocations(from, to *store.Snapshot) {
	for ch := range o.tables.Blocks.Changes(from, to) {
		id, _, _ := state.SplitKey(ch.Key())
		if ch.New != nil {
			o.c.report.count("blocks leased", 1)
			o.c.journal.note("node %s gets block %s", ch.New.Value.NodeId, ch.Key())
		}
		if ch.Old != nil {
			o.c.journal.note("node %s returns block %s", ch.Old.Value.NodeId, ch.Key())
		}
		if ch.Old == nil || ch.New != nil && ch.New.Value.NodeId == ch.Old.Value.NodeId {
			continue
		}
		node := ch.Old.Value.NodeId
		number, _ := state.BlockNumber(ch.Key())
		for a := range o.tables.Assignments.Scan(to, node+"/") {
			if _, before := o.tables.Assignments.Get(from, a.Key); before && slices.Contains(a.Value.Networks, id) {
				o.taken = append(o.taken, &takenBlock{network: id, node: node, number: number, assignment: a.Key})
			}
		}
	}
}

// robbed checks that no task keeps running with an address of a block that was taken from
// its node.
func (p *picture) robbed() {
	o := p.observer
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken = slices.DeleteFunc(o.taken, func(b *takenBlock) bool {
		addressed, known := p.holds(b)
		if addressed && b.seen {
			p.fault("task %s runs on %s with an address of block %d of network %s, which was taken from the node",
				b.assignment, b.node, b.number, short(b.network))
		}
		done := known && (!addressed || b.seen)
		b.seen = addressed
		return done
	})
}

// holds reports whether a task has an address of a block that its node does not hold, and
// whether that can be known yet.
func (p *picture) holds(b *takenBlock) (addressed, known bool) {
	t := p.observer.tables
	_, assigned := t.Assignments.Get(p.now, b.assignment)
	s, reported := t.Statuses.Get(p.now, b.assignment)
	if spec, _ := t.Nodes.Get(p.now, b.node); !assigned || spec.Value.GetRemoved() || s.Value.GetState() > musterv1.TaskState_RUNNING {
		return false, true
	}
	if e, ok := t.Blocks.Get(p.now, state.BlockKey(b.network, b.number)); ok && e.Value.NodeId == b.node {
		return false, true
	}
	if !reported || len(s.Value.Networks) == 0 {
		return false, false
	}
	subnets, _ := t.NetworkStates.Get(p.now, b.network)
	layout, err := addresses.ReadLayout(subnets.Value)
	if err != nil {
		return false, true
	}
	for _, n := range s.Value.Networks {
		for _, text := range n.Addresses {
			if _, in := layout.Block(b.number).Offset(netip.MustParseAddr(text)); in && n.NetworkId == b.network {
				return true, true
			}
		}
	}
	return false, true
}

// holders checks that no port and no virtual address has two holders.
func (p *picture) holders() {
	holder := map[string]string{}
	hold := func(what, service string) {
		if other := holder[what]; other != "" && other != service {
			p.fault("services %s and %s both have %s", other, service, what)
		}
		holder[what] = service
	}
	for e := range p.observer.tables.Endpoints.Scan(p.now, "") {
		for _, port := range e.Value.GetEndpoint().GetPorts() {
			if state.IsIngress(port) {
				hold(fmt.Sprintf("port %d/%v", port.PublishedPort, port.Protocol), e.Key)
			}
		}
		for _, v := range e.Value.GetEndpoint().GetVirtualIps() {
			hold(fmt.Sprintf("address %s of network %s", v.Address, short(v.NetworkId)), e.Key)
		}
	}
}

// thievingAllocator returns blocks of nodes that have tasks.
func thievingAllocator() Mutation {
	now := every(5)
	return rogues("a block that is taken from its tasks", func(ctx context.Context, r *rogue) error {
		for a := range r.tables.Assignments.Scan(r.now, "") {
			node, _, _ := state.SplitKey(a.Key)
			if len(a.Value.Networks) == 0 || !now() {
				continue
			}
			for b := range r.tables.Blocks.Scan(r.now, a.Value.Networks[0]+"/") {
				if b.Value.NodeId != node {
					continue
				}
				if err := r.store.Update(ctx, func(tx *store.Tx) error {
					r.tables.Blocks.Delete(tx, b.Key)
					return nil
				}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// secondAllocator gives a service what another has, and heeds no fence.
func secondAllocator() Mutation {
	return rogues("an allocator without a fence", func(ctx context.Context, r *rogue) error {
		var first *store.Entry[*recordv1.Endpoint]
		for e := range r.tables.Endpoints.Scan(r.now, "") {
			if !slices.ContainsFunc(e.Value.GetEndpoint().GetPorts(), state.IsIngress) && len(e.Value.GetEndpoint().GetVirtualIps()) == 0 {
				continue
			}
			if first == nil {
				first = &e
				continue
			}
			return r.store.Update(ctx, func(tx *store.Tx) error {
				if other, ok := r.tables.Endpoints.Get(tx, e.Key); ok {
					copied := clone(other.Value)
					copied.Endpoint.Ports, copied.Endpoint.VirtualIps = first.Value.Endpoint.Ports, first.Value.Endpoint.VirtualIps
					r.tables.Endpoints.Put(tx, e.Key, copied)
				}
				return nil
			})
		}
		return nil
	})
}
