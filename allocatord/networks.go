package allocatord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// mostLeases bounds the blocks of one network that are leased in one commit.
const mostLeases = 1000

// reconcile gives nodes the blocks that they need and services their virtual addresses,
// and takes those that are no longer needed, in the shards that are held.
func (m *model) reconcile(ctx context.Context, held map[int]uint64, now *store.Snapshot) error {
	m.advance(now)
	var plans []*allocation
	for id, n := range m.networks {
		gain, mine := held[shardOf(id)]
		if mine && (m.gains[shardOf(id)] != gain || n.inexact) {
			m.restore(n)
			n.inexact = false
		}
		nodes, services := maps.Clone(n.dirtyNodes), maps.Clone(n.dirtyServices)
		if mine {
			plans = append(plans, m.decideNodes(n)...)
			plans = append(plans, m.decideServices(n)...)
		} else {
			// Another replica decides. Everything is read again when this one
			// gains the shard.
			clear(n.dirtyNodes)
			clear(n.dirtyServices)
		}
		n.sweep(nodes, services)
		if n.record == nil && n.state == nil && len(n.nodes) == 0 && len(n.services) == 0 {
			delete(m.networks, id)
		}
	}
	m.gains = maps.Clone(held)
	err := m.commit(ctx, plans)
	m.count(held)
	return err
}

// allocation is a change that was decided on, of one network.
type allocation struct {
	network *network
	fn      func(tx *store.Tx) error
	// leased are when the tasks were assigned for which blocks are leased.
	leased []int64
}

// commit writes what was decided. A network of which something could not be written is
// read again.
func (m *model) commit(ctx context.Context, plans []*allocation) error {
	updates := make([]update, len(plans))
	for i, a := range plans {
		updates[i] = update{shard: shardOf(a.network.id), fn: a.fn}
	}
	errs := m.d.networks.commit(ctx, updates)
	now := time.Now()
	for i, err := range errs {
		if err != nil {
			plans[i].network.inexact = true
			continue
		}
		for _, at := range plans[i].leased {
			if at > 0 {
				m.d.metrics.leases.Observe(max(0, now.Sub(time.UnixMilli(at)).Seconds()))
			}
		}
	}
	return errors.Join(errs...)
}

// decideNodes decides which blocks nodes get and return.
func (m *model) decideNodes(n *network) []*allocation {
	var plans []*allocation
	var leases []lease
	for _, id := range slices.Sorted(maps.Keys(n.dirtyNodes)) {
		delete(n.dirtyNodes, id)
		delete(n.fullNodes, id)
		use := n.nodes[id]
		if use == nil {
			use = &nodeUse{}
		}
		ingress := n.record.GetSpec().GetIngress() && m.takesIngress(n, id)
		switch wants := use.assigned > 0 || ingress; {
		case n.layout == nil:
		case removed(m.d.tables, m.now, id) || !wants:
			if len(use.blocks) > 0 {
				plans = append(plans, m.release(n, id, use))
			}
		case n.record == nil:
		default:
			if len(leases) >= mostLeases {
				n.dirtyNodes[id] = struct{}{} // the commit wakes the loop
				continue
			}
			// One address is the node's own.
			need := use.live + 1
			if free := n.usableBlocks - n.blocks.Held(); use.capacity+free*n.leastCapacity < min(need, 2) {
				// With this block the node could still run no task.
				n.fullNodes[id] = struct{}{}
				continue
			}
			for use.capacity < need {
				number, ok := uint32(0), n.blocks.Held() < n.usableBlocks
				if ok {
					number, ok = n.blocks.Take(id)
				}
				if !ok {
					n.fullNodes[id] = struct{}{}
					break
				}
				n.nodes[id] = use
				n.has(id, number)
				delete(n.dirtyNodes, id)
				leases = append(leases, lease{node: id, number: number, assignedAt: use.assignedAt})
			}
		}
	}
	if len(leases) > 0 {
		plans = append(plans, m.lease(n, leases))
	}
	return plans
}

// lease is a block that a node gets.
type lease struct {
	node       string
	number     uint32
	assignedAt int64
}

// lease gives nodes blocks.
func (m *model) lease(n *network, leases []lease) *allocation {
	t, next, at := m.d.tables, n.blocks.Next(), time.Now().UnixMilli()
	subnets, layout := n.state.GetSubnets(), n.layout
	a := &allocation{network: n, fn: func(tx *store.Tx) error {
		s, ok := t.NetworkStates.Get(tx, n.id)
		if _, exists := t.Networks.Get(tx, n.id); !ok || !exists || !slices.Equal(s.Value.Subnets, subnets) {
			return errStale
		}
		for _, l := range leases {
			key := state.BlockKey(n.id, l.number)
			if _, held := t.Blocks.Get(tx, key); held || removed(t, tx, l.node) {
				return errStale
			}
			t.Blocks.Put(tx, key, &recordv1.Block{NodeId: l.node, Subnets: layout.Block(l.number).Strings(), LeasedAt: at})
		}
		to := proto.CloneOf(s.Value)
		to.NextBlock = next
		t.NetworkStates.Put(tx, n.id, to)
		return nil
	}}
	for _, l := range leases {
		a.leased = append(a.leased, l.assignedAt)
	}
	return a
}

// release takes all blocks of a network from a node.
func (m *model) release(n *network, node string, use *nodeUse) *allocation {
	t, numbers := m.d.tables, slices.Clone(use.blocks)
	for _, number := range numbers {
		n.lost(node, number)
	}
	delete(n.dirtyNodes, node)
	return &allocation{network: n, fn: func(tx *store.Tx) error {
		if !removed(t, tx, node) {
			// The scheduler may have given the node a task since.
			for a := range t.Assignments.Scan(tx, node+"/") {
				if slices.Contains(a.Value.Networks, n.id) {
					return errStale
				}
			}
		}
		for _, number := range numbers {
			if b, ok := t.Blocks.Get(tx, state.BlockKey(n.id, number)); ok && b.Value.NodeId == node {
				t.Blocks.Delete(tx, b.Key)
			}
		}
		return nil
	}}
}

// decideServices decides which services get virtual addresses and return them.
func (m *model) decideServices(n *network) []*allocation {
	var plans []*allocation
	for _, id := range m.byAge(n.dirtyServices) {
		delete(n.dirtyServices, id)
		delete(n.fullServices, id)
		use := n.services[id]
		if use == nil {
			continue
		}
		s, exists := m.d.tables.Services.Get(m.now, id)
		if _, unknown := m.unknown[id]; unknown && use.stored {
			continue // its spec may name the network
		}
		// A service that left the network keeps its addresses while tasks are on it.
		needs := use.named || use.stored && use.live > 0
		wants := exists && n.record != nil && needs && !isDNSRR(m.d.tables, m.now, id, s.Value)
		switch {
		case n.layout == nil && wants:
		case wants:
			if a := m.give(n, id); a != nil {
				plans = append(plans, a)
			}
		case use.stored && exists:
			if n.vips != nil {
				n.vips.Free(id)
			}
			plans = append(plans, m.writeVIPs(n, id, nil, ""))
		}
	}
	return plans
}

// byAge sorts services by age.
func (m *model) byAge(ids map[string]struct{}) []string {
	created := func(id string) int64 {
		s, _ := m.d.tables.Services.Get(m.now, id)
		return s.Value.GetCreatedAt()
	}
	return slices.SortedFunc(maps.Keys(ids), func(a, b string) int { return cmp.Or(cmp.Compare(created(a), created(b)), cmp.Compare(a, b)) })
}

// give gives a service its virtual addresses on a network; nil if it has them.
func (m *model) give(n *network, id string) *allocation {
	of, ok := n.vips.Give(id)
	why := ""
	if !ok {
		n.fullServices[id] = struct{}{}
		why = fmt.Sprintf("network %s has no virtual address left: all %d are in use", n.record.Spec.Name, n.vips.Held())
	}
	e := m.endpoint(id)
	had := func(v *musterv1.VirtualIP) bool {
		return slices.ContainsFunc(e.GetEndpoint().GetVirtualIps(), func(o *musterv1.VirtualIP) bool { return proto.Equal(o, v) })
	}
	if e.GetNetworkErrors()[n.id] == why && !slices.ContainsFunc(of, func(v *musterv1.VirtualIP) bool { return !had(v) }) {
		return nil
	}
	return m.writeVIPs(n, id, of, why)
}

// writeVIPs sets the virtual addresses of a service on a network; none: it has none, for
// a reason if it should have some.
func (m *model) writeVIPs(n *network, id string, of []*musterv1.VirtualIP, why string) *allocation {
	t, pool := m.d.tables, n.vips
	return &allocation{network: n, fn: func(tx *store.Tx) error {
		s, ok := t.Services.Get(tx, id)
		if !ok {
			return nil // its endpoint is about to be removed
		}
		if dnsrr := isDNSRR(t, tx, id, s.Value); dnsrr && len(of) > 0 {
			return errStale
		}
		if len(of) > 0 {
			st, ok := t.NetworkStates.Get(tx, n.id)
			if !ok {
				return errStale
			}
			to := proto.CloneOf(st.Value)
			to.NextVirtual = pool.Next() // when all of this commit were given
			t.NetworkStates.Put(tx, n.id, to)
		}
		putEndpoint(t, tx, id, func(e *recordv1.Endpoint) {
			e.Endpoint.Spec = endpointSpec(t, tx, id, s.Value)
			e.Endpoint.VirtualIps = slices.DeleteFunc(e.Endpoint.VirtualIps, func(v *musterv1.VirtualIP) bool { return v.NetworkId == n.id })
			e.Endpoint.VirtualIps = append(e.Endpoint.VirtualIps, of...)
			delete(e.NetworkErrors, n.id)
			if why != "" {
				if e.NetworkErrors == nil {
					e.NetworkErrors = map[string]string{}
				}
				e.NetworkErrors[n.id] = why
			}
		})
		return nil
	}}
}

// count says what is held.
func (m *model) count(held map[int]uint64) {
	totals := map[string]int{kindBlock: 0, kindVirtual: 0, kindTask: 0}
	waiting := map[string]int{kindBlock: 0, kindVirtual: 0}
	for id, n := range m.networks {
		if _, mine := held[shardOf(id)]; !mine || n.layout == nil {
			continue
		}
		totals[kindBlock] += n.blocks.Held()
		totals[kindVirtual] += n.vips.Held()
		totals[kindTask] += n.live
		waiting[kindBlock] += len(n.fullNodes)
		waiting[kindVirtual] += len(n.fullServices)
	}
	for kind, total := range totals {
		m.d.metrics.held.WithLabelValues(kind).Set(float64(total))
	}
	for kind, total := range waiting {
		m.d.metrics.waiting.WithLabelValues(kind).Set(float64(total))
	}
}
