package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// limits are what one task may ask.
type limits struct{ rate, forwards int }

// zone is what names and addresses mean on this node.
type zone struct {
	limits limits

	mu       sync.RWMutex
	networks map[string]*network
	// clients are those that may ask, by network and address.
	clients map[place]*client
	// tasks are the attached tasks by id.
	tasks map[string]*client
	// aliases are the attached tasks by network and alias.
	aliases map[alias][]*client
}

// place is an address on a network.
type place struct {
	network string
	address netip.Addr
}

type alias struct{ network, name string }

// client is an attached task, or a node itself.
type client struct {
	task, service string
	// networks are the ids of its networks in their order.
	networks []string
	places   []place
	aliases  []alias
	// node says that it is the node, which asks only to test a network.
	node bool

	rate *rate.Limiter
	// reserved and forwards have room for its forwarded queries that are open. Those in
	// reserved wait for no other task.
	reserved, forwards chan struct{}
	// connections counts its open TCP connections.
	connections chan struct{}
}

// network holds the services of one network.
type network struct {
	id       string
	name     string
	internal bool
	// ingress networks have no names: services of different owners meet there.
	ingress  bool
	subnets  []netip.Prefix
	self     []netip.Addr
	services map[string]*service
	// names are the services by name and alias.
	names map[string][]*service
	// owners are who has an address.
	owners map[netip.Addr]owner
}

// owner is a service, which has the address as a virtual one, or one of its backends.
type owner struct {
	service *service
	backend *backend
}

type service struct {
	id, name string
	aliases  []string
	vips     []netip.Addr
	ports    []*musterv1.PortConfig
	// backends are in no order; index says where each is.
	backends []*backend
	index    map[string]int
	// slots are the backends by their slot.
	slots map[uint64][]*backend
	// families counts the backends' addresses of IPv4 and IPv6.
	families [2]int
}

type backend struct {
	task      string
	service   *service
	node      string
	slot      uint64
	addresses []netip.Addr
}

// name returns the task's name.
func (b *backend) name() string { return b.service.name + "." + b.place() + "." + b.task }

// place returns the middle of the task's name.
func (b *backend) place() string {
	if b.slot == 0 {
		return b.node
	}
	return strconv.FormatUint(b.slot, 10)
}

func newZone(l limits) *zone {
	return &zone{
		limits: l, networks: map[string]*network{}, clients: map[place]*client{}, tasks: map[string]*client{}, aliases: map[alias][]*client{},
	}
}

func newNetwork(id string) *network {
	return &network{id: id, services: map[string]*service{}, names: map[string][]*service{}, owners: map[netip.Addr]owner{}}
}

func (z *zone) newClient() *client {
	return &client{
		rate:        rate.NewLimiter(rate.Limit(z.limits.rate), z.limits.rate),
		reserved:    make(chan struct{}, min(reservedForwards, z.limits.forwards)),
		forwards:    make(chan struct{}, max(0, z.limits.forwards-reservedForwards)),
		connections: make(chan struct{}, maxConnections),
	}
}

// apply carries out a request. A complete one is prepared beside what is there, so that
// queries do not wait for it.
func (z *zone) apply(r *networkv1.ApplyRequest) {
	if r.GetComplete() {
		networks := map[string]*network{}
		change(networks, r)
		z.mu.Lock()
		defer z.mu.Unlock()
		z.networks = networks
	} else {
		z.mu.Lock()
		defer z.mu.Unlock()
		change(z.networks, r)
	}
	if r.GetComplete() || len(r.GetNetworks()) > 0 || len(r.GetRemovedNetworks()) > 0 {
		z.setSelf()
	}
}

// setSelf makes the node itself a client on each of its networks.
func (z *zone) setSelf() {
	for p, c := range z.clients {
		if c.node {
			delete(z.clients, p)
		}
	}
	for id, n := range z.networks {
		for _, a := range n.self {
			p := place{id, a}
			if _, taken := z.clients[p]; taken {
				continue
			}
			c := z.newClient()
			c.node, c.networks = true, []string{id}
			z.clients[p] = c
		}
	}
}

func change(networks map[string]*network, r *networkv1.ApplyRequest) {
	for _, message := range r.GetNetworks() {
		n := networks[message.GetId()]
		if n == nil {
			n = newNetwork(message.GetId())
			networks[n.id] = n
		}
		n.name, n.internal, n.ingress = fold(message.GetName()), message.GetInternal(), message.GetIngress()
		n.self = addresses(message.GetNodeAddresses())
		n.subnets = n.subnets[:0]
		for _, text := range message.GetSubnets() {
			n.subnets = append(n.subnets, netip.MustParsePrefix(text))
		}
	}
	for _, id := range r.GetRemovedNetworks() {
		delete(networks, id)
	}
	for _, message := range r.GetServices() {
		if n := networks[message.GetNetworkId()]; n != nil {
			n.setService(message)
		}
	}
	for _, ref := range r.GetRemovedServices() {
		if n := networks[ref.GetNetworkId()]; n != nil {
			n.removeService(ref.GetServiceId())
		}
	}
	for _, message := range r.GetBackends() {
		if n := networks[message.GetNetworkId()]; n != nil && n.services[message.GetServiceId()] != nil {
			n.setBackends(n.services[message.GetServiceId()], message)
		}
	}
}

func (n *network) setService(message *networkv1.Service) {
	s := n.services[message.GetId()]
	if s == nil {
		s = &service{id: message.GetId(), index: map[string]int{}, slots: map[uint64][]*backend{}}
		n.services[s.id] = s
	} else {
		n.hide(s)
	}
	s.name, s.ports, s.aliases, s.vips = fold(message.GetName()), message.GetPorts(), nil, nil
	for _, name := range message.GetAliases() {
		s.aliases = append(s.aliases, fold(name))
	}
	if message.GetMode() != musterv1.EndpointSpec_DNSRR {
		s.vips = addresses(message.GetVirtualIps())
	}
	for _, name := range s.names() {
		n.names[name] = append(n.names[name], s)
	}
	for _, a := range s.vips {
		n.owners[a] = owner{service: s}
	}
}

// names returns a service's name and aliases, each once.
func (s *service) names() []string {
	names := append([]string{s.name}, s.aliases...)
	slices.Sort(names)
	return slices.Compact(names)
}

// hide takes a service's names and virtual addresses away.
func (n *network) hide(s *service) {
	for _, name := range s.names() {
		n.names[name] = slices.DeleteFunc(n.names[name], func(other *service) bool { return other == s })
		if len(n.names[name]) == 0 {
			delete(n.names, name)
		}
	}
	n.disown(owner{service: s}, s.vips)
}

func (n *network) removeService(id string) {
	s := n.services[id]
	if s == nil {
		return
	}
	n.hide(s)
	for _, b := range s.backends {
		n.disown(owner{s, b}, b.addresses)
	}
	delete(n.services, id)
}

// disown takes addresses away from their owner, unless another has them by now.
func (n *network) disown(o owner, of []netip.Addr) {
	for _, a := range of {
		if n.owners[a] == o {
			delete(n.owners, a)
		}
	}
}

func (n *network) setBackends(s *service, message *networkv1.Backends) {
	if message.GetComplete() {
		for len(s.backends) > 0 {
			n.removeBackend(s, s.backends[len(s.backends)-1].task)
		}
	}
	for _, id := range message.GetRemoved() {
		n.removeBackend(s, id)
	}
	for _, one := range message.GetBackends() {
		n.removeBackend(s, one.GetTaskId())
		b := &backend{
			task: fold(one.GetTaskId()), service: s, node: fold(one.GetNodeId()), slot: one.GetSlot(), addresses: addresses(one.GetAddresses()),
		}
		s.index[b.task] = len(s.backends)
		s.backends = append(s.backends, b)
		if b.slot > 0 {
			s.slots[b.slot] = append(s.slots[b.slot], b)
		}
		for _, a := range b.addresses {
			n.owners[a] = owner{s, b}
			s.families[index(a.Is6())]++
		}
	}
}

// removeBackend fills the gap that a backend leaves with the last one.
func (n *network) removeBackend(s *service, task string) {
	task = fold(task)
	i, known := s.index[task]
	if !known {
		return
	}
	b := s.backends[i]
	n.disown(owner{s, b}, b.addresses)
	for _, a := range b.addresses {
		s.families[index(a.Is6())]--
	}
	if b.slot > 0 {
		s.slots[b.slot] = slices.DeleteFunc(s.slots[b.slot], func(other *backend) bool { return other == b })
		if len(s.slots[b.slot]) == 0 {
			delete(s.slots, b.slot)
		}
	}
	last := len(s.backends) - 1
	s.backends[i] = s.backends[last]
	s.index[s.backends[i].task] = i
	s.backends[last] = nil
	s.backends = s.backends[:last]
	delete(s.index, task)
}

func (z *zone) attach(r *networkv1.AttachRequest) {
	z.mu.Lock()
	defer z.mu.Unlock()
	c := z.tasks[r.GetTaskId()]
	if c == nil {
		c = z.newClient()
	} else {
		z.forget(c)
		// Those that ask at present read the client: it must not change.
		c = &client{rate: c.rate, reserved: c.reserved, forwards: c.forwards, connections: c.connections}
	}
	c.task, c.service = r.GetTaskId(), r.GetServiceId()
	for _, a := range r.GetAttachments() {
		c.networks = append(c.networks, a.GetNetworkId())
		for _, address := range addresses(a.GetAddresses()) {
			p := place{a.GetNetworkId(), address}
			c.places = append(c.places, p)
			z.clients[p] = c
		}
		for _, name := range a.GetAliases() {
			key := alias{a.GetNetworkId(), fold(name)}
			c.aliases = append(c.aliases, key)
			z.aliases[key] = append(z.aliases[key], c)
		}
	}
	z.tasks[c.task] = c
}

func (z *zone) detach(task string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if c := z.tasks[task]; c != nil {
		z.forget(c)
		delete(z.tasks, task)
	}
}

func (z *zone) forget(c *client) {
	for _, p := range c.places {
		if z.clients[p] == c {
			delete(z.clients, p)
		}
	}
	for _, key := range c.aliases {
		z.aliases[key] = slices.DeleteFunc(z.aliases[key], func(other *client) bool { return other == c })
		if len(z.aliases[key]) == 0 {
			delete(z.aliases, key)
		}
	}
}

// client returns who asks from an address, or nil.
func (z *zone) client(network string, from netip.Addr) *client {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.clients[place{network, from.Unmap().WithZone("")}]
}

// reachesOutside reports whether a client is on a network that is not internal. A published
// port alone gives no way out to a task of internal networks.
func (z *zone) reachesOutside(c *client) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return !c.node && slices.ContainsFunc(c.networks, func(id string) bool {
		n := z.networks[id]
		return n != nil && !n.internal && (!n.ingress || len(c.networks) == 1)
	})
}

// addresses reads addresses that the SDK has checked.
func addresses(texts []string) []netip.Addr {
	all := make([]netip.Addr, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParseAddr(text)
	}
	return all
}

// index returns the index of a family.
func index(six bool) int {
	if six {
		return 1
	}
	return 0
}

// fold returns a name in the form in which it is compared.
func fold(name string) string { return strings.ToLower(name) }
