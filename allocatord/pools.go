package allocatord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/allocatord/ipam"
	"github.com/musterhq/muster/allocatord/ports"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// pools gives what is unique in the cluster: published ports, subnets and network
// identifiers. It belongs to its loop.
type pools struct {
	d     *Daemon
	ports *ports.Pool
	// gain is the number of the shard's gain since which the pools are kept, and done
	// the snapshot up to which everything is written; nil if all must be read again.
	gain uint64
	done *store.Snapshot
	// missing counts the ports that services wait for, subnets those that networks have,
	// and without the networks that got none.
	missing          map[string]int
	subnets, without int
}

// reconcile gives what has changed since the last call what it needs, or everything if
// the shard was gained since, or something could not be written.
func (p *pools) reconcile(ctx context.Context, held map[int]uint64, now *store.Snapshot) error {
	gain, ok := held[poolShard]
	if !ok {
		p.done = nil
		p.count(false)
		return nil
	}
	if p.gain != gain || p.done == nil {
		p.restore(now)
		p.gain, p.done = gain, nil
	}
	err := errors.Join(p.networks(ctx, now), p.services(ctx, now))
	if p.done = now; err != nil {
		p.done = nil
	}
	p.count(true)
	return err
}

// restore reads who has which ports.
func (p *pools) restore(now *store.Snapshot) {
	p.ports, p.missing = ports.New(), map[string]int{}
	var ids []string
	for e := range p.d.tables.Endpoints.Scan(now, "") {
		ids = append(ids, e.Key)
	}
	p.sort(now, ids)
	for _, id := range ids {
		e, _ := p.d.tables.Endpoints.Get(now, id)
		p.ports.Restore(id, e.Value.GetEndpoint().GetPorts())
	}
}

// sort sorts services by age.
func (p *pools) sort(now *store.Snapshot, ids []string) {
	created := func(id string) int64 {
		s, _ := p.d.tables.Services.Get(now, id)
		return s.Value.GetCreatedAt()
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(cmp.Compare(created(a), created(b)), cmp.Compare(a, b)) })
}

// count sets the metrics; to 0 if the shard is not held.
func (p *pools) count(held bool) {
	missing, ports := 0, 0
	for _, n := range p.missing {
		missing += n
	}
	if held {
		ports = p.ports.Held()
	} else {
		p.subnets, p.without, missing = 0, 0, 0
	}
	m := p.d.metrics
	m.held.WithLabelValues(kindPort).Set(float64(ports))
	m.held.WithLabelValues(kindSubnet).Set(float64(p.subnets))
	m.waiting.WithLabelValues(kindPort).Set(float64(missing))
	m.waiting.WithLabelValues(kindSubnet).Set(float64(p.without))
}

// endpointUpdate is the change of one service's endpoint.
type endpointUpdate struct {
	update
	service string
	// changed is the service if its ports change.
	changed *recordv1.Service
}

// services brings the ports of services to what they should be.
func (p *pools) services(ctx context.Context, now *store.Snapshot) error {
	t := p.d.tables
	changed := map[string]struct{}{}
	for c := range t.Services.Changes(p.done, now) {
		changed[c.Key()] = struct{}{}
	}
	for c := range t.Rollouts.Changes(p.done, now) {
		changed[c.Key()] = struct{}{}
	}
	for c := range t.Endpoints.Changes(p.done, now) {
		changed[c.Key()] = struct{}{}
	}
	todo := make([]string, 0, len(changed))
	for id := range changed {
		todo = append(todo, id)
	}
	p.sort(now, todo)
	began := time.Now()
	decided := map[string]*endpointUpdate{}
	for ; len(todo) > 0; todo = todo[1:] {
		u, freed := p.service(now, todo[0])
		decided[todo[0]] = u
		p.sort(now, freed)
		todo = append(todo, freed...)
	}
	var updates []update
	var of []*endpointUpdate
	for _, u := range decided {
		if u != nil {
			updates, of = append(updates, u.update), append(of, u)
		}
	}
	errs := p.d.pool.commit(ctx, updates)
	for i, err := range errs {
		if s := of[i].changed; err == nil && s != nil {
			p.d.metrics.endpoints.Observe(max(0, time.Since(time.UnixMilli(s.UpdatedAt)).Seconds()))
			p.d.tracer.Begin(s.Trace, "allocate endpoint", began, tracing.Service(of[i].service)).End(nil)
		}
	}
	return errors.Join(errs...)
}

// service decides which ports a service has. It returns nil if the endpoint is as it
// should be, and the services that must be decided on again because of ports that the
// service no longer has.
func (p *pools) service(now *store.Snapshot, id string) (u *endpointUpdate, freed []string) {
	t := p.d.tables
	s, exists := t.Services.Get(now, id)
	old, stored := t.Endpoints.Get(now, id)
	if !exists {
		delete(p.missing, id)
		_, _, freed = p.ports.Set(id, nil, nil)
		if !stored {
			return nil, freed
		}
		return &endpointUpdate{service: id, update: update{shard: poolShard, fn: func(tx *store.Tx) error {
			if _, ok := t.Services.Get(tx, id); ok {
				return errStale
			}
			t.Endpoints.Delete(tx, id)
			return nil
		}}}, freed
	}
	spec := endpointSpec(t, now, id, s.Value)
	published := old.Value.GetEndpoint().GetPorts()
	got, missing, freed := p.ports.Set(id, spec.GetPorts(), published)
	if p.missing[id] = len(missing); len(missing) == 0 {
		delete(p.missing, id)
	}
	why := p.explain(now, missing)
	set := func(e *recordv1.Endpoint) {
		e.Endpoint.Spec, e.Endpoint.Ports, e.Error = spec, got, why
	}
	if want := endpointWith(old.Value, set); proto.Equal(want, old.Value) || want == nil && !stored {
		return nil, freed
	}
	u = &endpointUpdate{service: id, update: update{shard: poolShard, fn: func(tx *store.Tx) error {
		present, ok := t.Services.Get(tx, id)
		if !ok || !proto.Equal(endpointSpec(t, tx, id, present.Value), spec) {
			return errStale
		}
		putEndpoint(t, tx, id, set)
		return nil
	}}}
	if !slices.EqualFunc(published, got, func(a, b *musterv1.PortConfig) bool { return proto.Equal(a, b) }) {
		u.changed = s.Value
	}
	return u, freed
}

// explain says for people why ports are missing.
func (p *pools) explain(now *store.Snapshot, missing []ports.Missing) string {
	var why []string
	for _, m := range missing {
		if m.Number == 0 {
			why = append(why, fmt.Sprintf("no %s port from %d to %d is left to publish",
				strings.ToLower(m.Protocol.String()), ports.FirstDynamic, ports.LastDynamic))
			continue
		}
		holder, _ := p.d.tables.Services.Get(now, m.Holder)
		why = append(why, fmt.Sprintf("published port %s is in use by service %q", m.Port, cmp.Or(holder.Value.GetSpec().GetName(), m.Holder)))
	}
	return strings.Join(why, "; ")
}

// endpointSpec returns what a service publishes: after an update that was rolled back,
// what it published before.
func endpointSpec(t *state.Tables, r store.Reader, id string, s *recordv1.Service) *musterv1.EndpointSpec {
	rollout, _ := t.Rollouts.Get(r, id)
	return state.EffectiveSpec(s, rollout.Value).Endpoint
}

// endpointWith returns a changed copy of an endpoint; nil if it says nothing.
func endpointWith(old *recordv1.Endpoint, set func(e *recordv1.Endpoint)) *recordv1.Endpoint {
	e := proto.CloneOf(old)
	if e == nil {
		e = &recordv1.Endpoint{}
	}
	if e.Endpoint == nil {
		e.Endpoint = &musterv1.Endpoint{}
	}
	set(e)
	if len(e.Endpoint.Spec.GetPorts()) == 0 && len(e.Endpoint.VirtualIps) == 0 && len(e.NetworkErrors) == 0 {
		return nil
	}
	return e
}

// putEndpoint changes the endpoint of a service.
func putEndpoint(t *state.Tables, tx *store.Tx, id string, set func(e *recordv1.Endpoint)) {
	old, _ := t.Endpoints.Get(tx, id)
	if e := endpointWith(old.Value, set); e != nil {
		t.Endpoints.Put(tx, id, e)
	} else {
		t.Endpoints.Delete(tx, id)
	}
}

// networks gives networks their subnets and identifiers, and takes them from networks
// that are gone and of which no node has addresses any longer.
func (p *pools) networks(ctx context.Context, now *store.Snapshot) error {
	if !p.networksChanged(now) {
		return nil
	}
	t := p.d.tables
	vnis := map[uint32]bool{}
	var used []netip.Prefix
	var updates []update
	for s := range t.NetworkStates.Scan(now, "") {
		if _, ok := t.Networks.Get(now, s.Key); !ok {
			if !hasBlocks(t, now, s.Key) { // the return of the last one is a change
				updates = append(updates, p.removal(s.Key))
			}
		}
		vnis[s.Value.Vni] = true
		for _, cidr := range s.Value.Subnets {
			if prefix, err := netip.ParsePrefix(cidr); err == nil {
				used = append(used, prefix)
			}
		}
	}
	p.subnets, p.without = len(used), 0
	var without []store.Entry[*recordv1.Network]
	for n := range t.Networks.Scan(now, "") {
		if s, ok := t.NetworkStates.Get(now, n.Key); !ok || s.Value.Error != "" {
			without = append(without, n)
		}
	}
	slices.SortFunc(without, func(a, b store.Entry[*recordv1.Network]) int {
		return cmp.Or(cmp.Compare(a.Value.CreatedAt, b.Value.CreatedAt), cmp.Compare(a.Key, b.Key))
	})
	// A subnet is chosen beside those that networks give, whichever network is older.
	for _, n := range without {
		given, _, _ := givenSubnets(n.Value.Spec) // networkState reports the error
		for _, s := range given {
			used = append(used, s.Prefix)
		}
	}
	cluster, _ := t.Clusters.Get(now, state.ClusterID)
	pools := addresses.Pools(cluster.Value.GetSpec())
	for _, n := range without {
		s, subnets, err := networkState(n.Key, n.Value.Spec, pools, used, vnis)
		if err != nil {
			s = &recordv1.NetworkState{Error: err.Error()}
			p.without++
		} else {
			used = append(used, subnets...)
			vnis[s.Vni] = true
			p.subnets += len(subnets)
		}
		if old, ok := t.NetworkStates.Get(now, n.Key); !ok || !proto.Equal(old.Value, s) {
			updates = append(updates, p.addition(n, s))
		}
	}
	return errors.Join(p.d.pool.commit(ctx, updates)...)
}

// networksChanged reports whether a network may need a subnet, or no longer need one.
func (p *pools) networksChanged(now *store.Snapshot) bool {
	t := p.d.tables
	for range t.Networks.Changes(p.done, now) {
		return true
	}
	for range t.Clusters.Changes(p.done, now) {
		return true
	}
	for c := range t.NetworkStates.Changes(p.done, now) {
		if c.Old == nil || c.New == nil {
			return true
		}
	}
	for c := range t.Blocks.Changes(p.done, now) {
		if c.New == nil {
			return true
		}
	}
	return false
}

// hasBlocks reports whether a node has a block of a network.
func hasBlocks(t *state.Tables, r store.Reader, network string) bool {
	for range t.Blocks.Scan(r, network+"/") {
		return true
	}
	return false
}

// removal removes what a network got that is gone.
func (p *pools) removal(network string) update {
	t := p.d.tables
	return update{shard: poolShard, fn: func(tx *store.Tx) error {
		if _, ok := t.Networks.Get(tx, network); ok {
			return errStale
		}
		if hasBlocks(t, tx, network) {
			// The snapshot does not show the block. If it is returned before the next
			// snapshot, that one shows no change.
			return errStale
		}
		t.NetworkStates.Delete(tx, network)
		return nil
	}}
}

// addition writes what a network gets.
func (p *pools) addition(n store.Entry[*recordv1.Network], s *recordv1.NetworkState) update {
	t := p.d.tables
	return update{shard: poolShard, fn: func(tx *store.Tx) error {
		if present, ok := t.Networks.Get(tx, n.Key); !ok || present.Version != n.Version {
			return errStale
		}
		t.NetworkStates.Put(tx, n.Key, s)
		return nil
	}}
}

// Drivers of networks that do not get everything.
const (
	driverBridge = "bridge" // an overlay without peers: it has no identifier
	driverCNI    = "cni"    // chooses addresses itself
)

// networkState decides what a network gets, given what others have. It returns the subnets
// as well.
func networkState(id string, spec *musterv1.NetworkSpec, pools []addresses.Pool, used []netip.Prefix, vnis map[uint32]bool) (
	*recordv1.NetworkState, []netip.Prefix, error) {
	if spec.GetDriver().GetName() == driverCNI {
		return &recordv1.NetworkState{}, nil, nil
	}
	given, reserved, err := givenSubnets(spec)
	if err != nil {
		return nil, nil, err
	}
	for _, family := range []struct{ ipv4, wanted bool }{{true, true}, {false, spec.GetIpv6Enabled()}} {
		if !family.wanted || slices.ContainsFunc(given, func(s addresses.Subnet) bool { return s.Prefix.Addr().Is4() == family.ipv4 }) {
			continue
		}
		prefix, err := ipam.Subnet(pools, family.ipv4, used)
		if err != nil {
			return nil, nil, err
		}
		given = append(given, addresses.Subnet{Prefix: prefix})
	}
	layout, err := addresses.Divide(given, reserved)
	if err != nil {
		return nil, nil, err
	}
	s := layout.State()
	if spec.GetDriver().GetName() != driverBridge {
		if s.Vni, err = ipam.VNI(id, vnis); err != nil {
			return nil, nil, err
		}
	}
	subnets := make([]netip.Prefix, len(given))
	for i, g := range given {
		subnets[i] = g.Prefix
	}
	return s, subnets, nil
}

// givenSubnets returns the subnets that a spec gives, and the addresses in them that it
// reserves.
func givenSubnets(spec *musterv1.NetworkSpec) ([]addresses.Subnet, []netip.Addr, error) {
	var subnets []addresses.Subnet
	var reserved []netip.Addr
	reserve := func(text string) error {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("invalid address %q: want an IP address such as 10.1.0.1", text)
		}
		reserved = append(reserved, a)
		return nil
	}
	for _, c := range spec.GetIpam().GetConfigs() {
		if c.Gateway != "" {
			if err := reserve(c.Gateway); err != nil {
				return nil, nil, err
			}
		}
		for _, text := range c.Reserved {
			// Docker writes the prefix length, too.
			text, _, _ = strings.Cut(text, "/")
			if err := reserve(text); err != nil {
				return nil, nil, err
			}
		}
		if c.Subnet == "" {
			continue
		}
		s := addresses.Subnet{}
		var err error
		if s.Prefix, err = netip.ParsePrefix(c.Subnet); err != nil {
			return nil, nil, fmt.Errorf("invalid subnet %q: want CIDR notation such as 10.1.0.0/16", c.Subnet)
		}
		if c.Range != "" {
			if s.Range, err = netip.ParsePrefix(c.Range); err != nil {
				return nil, nil, fmt.Errorf("invalid range %q: want CIDR notation such as 10.1.4.0/22", c.Range)
			}
		}
		subnets = append(subnets, s)
	}
	return subnets, reserved, nil
}
