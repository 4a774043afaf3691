package dns

import (
	"cmp"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// result is what the zone says to a question.
type result struct {
	// known says that the name is the zone's: no resolver is asked.
	known bool
	// exists says that the name has data, perhaps of another type.
	exists        bool
	answer, extra []mdns.RR
}

// target is what a name stands for on a network.
type target struct {
	network  *network
	services []*service
	// each says that the services' tasks are meant, not their virtual addresses.
	each bool
	// backends are single tasks.
	backends []*backend
}

// lookup answers a question of a client. The answer has at most limit addresses.
func (z *zone) lookup(c *client, q mdns.Question, limit int) result {
	name := strings.TrimSuffix(fold(q.Name), ".")
	z.mu.RLock()
	defer z.mu.RUnlock()
	if address, ok := reverse(name); ok {
		return z.pointer(c, q, address)
	}
	if port, protocol, rest, ok := cutPort(name); ok {
		if t := z.find(c, rest); t != nil {
			return t.service(q, port, protocol, limit)
		}
		return result{}
	}
	t := z.find(c, name)
	if t == nil {
		return result{}
	}
	r := result{known: true, exists: t.exists()}
	if q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeAAAA {
		for _, a := range t.addresses(q.Qtype, limit) {
			r.answer = append(r.answer, record(q.Name, a))
		}
	}
	return r
}

// find returns what a name stands for: on the first of the client's networks that knows
// it, or on the one that the name ends with. The ingress network has no names.
func (z *zone) find(c *client, name string) *target {
	for _, id := range c.networks {
		if n := z.networks[id]; n != nil && !n.ingress {
			if t := z.findOn(n, name); t != nil {
				return t
			}
		}
	}
	for _, id := range c.networks {
		n := z.networks[id]
		if n == nil || n.ingress {
			continue
		}
		if short, ok := strings.CutSuffix(name, "."+n.name); ok {
			if t := z.findOn(n, short); t != nil {
				return t
			}
		}
	}
	return nil
}

func (z *zone) findOn(n *network, name string) *target {
	if services := n.names[name]; len(services) > 0 {
		return &target{network: n, services: services}
	}
	if short, ok := strings.CutPrefix(name, "tasks."); ok {
		if services := n.names[short]; len(services) > 0 {
			return &target{network: n, services: services, each: true}
		}
	}
	if t := n.findTask(name); t != nil {
		return t
	}
	var found []*backend
	for _, c := range z.aliases[alias{n.id, name}] {
		if s := n.services[c.service]; s != nil {
			if i, ok := s.index[fold(c.task)]; ok {
				found = append(found, s.backends[i])
			}
		}
	}
	if len(found) == 0 && len(z.aliases[alias{n.id, name}]) == 0 {
		return nil
	}
	return &target{network: n, backends: found}
}

// findTask reads a name as that of a task, or of a slot. "www.example.com" is not ours,
// even if there is a service "www".
func (n *network) findTask(name string) *target {
	service, rest, ok := strings.Cut(name, ".")
	if !ok {
		return nil
	}
	middle, task, full := strings.Cut(rest, ".")
	slot, err := strconv.ParseUint(middle, 10, 64)
	numbered := err == nil && slot > 0
	var t *target
	for _, s := range n.names[service] {
		if s.name != service {
			continue
		}
		switch {
		case full:
			if i, ok := s.index[task]; ok && s.backends[i].place() == middle {
				return &target{network: n, backends: s.backends[i : i+1]}
			}
			// No domain has a number at its end but one.
		case numbered:
			if t == nil {
				t = &target{network: n}
			}
			t.backends = append(t.backends, s.slots[slot]...)
		}
	}
	return t
}

// group is some of what a target stands for: a service for itself, or tasks.
type group struct {
	service  *service
	backends []*backend
	// end is the number of those in this group and the groups before it.
	end int
}

// groups returns what a target stands for, of the services that are wanted, and how many
// that are.
func (t *target) groups(wanted func(*service) bool) (groups []group, n int) {
	for _, s := range t.services {
		switch own := len(s.vips) > 0 && !t.each; {
		case !wanted(s):
			continue
		case own:
			n++
			groups = append(groups, group{service: s, end: n})
		case len(s.backends) > 0:
			n += len(s.backends)
			groups = append(groups, group{backends: s.backends, end: n})
		}
	}
	if len(t.backends) > 0 {
		n += len(t.backends)
		groups = append(groups, group{backends: t.backends, end: n})
	}
	return groups, n
}

// holders yields each service that stands for itself and each task that does, in random
// order. That costs as much as is taken of it.
func (t *target) holders(wanted func(*service) bool) iter.Seq2[*service, *backend] {
	return func(yield func(*service, *backend) bool) {
		groups, n := t.groups(wanted)
		for i := range shuffled(n) {
			at, _ := slices.BinarySearchFunc(groups, i+1, func(g group, i int) int { return cmp.Compare(g.end, i) })
			s, b := groups[at].service, (*backend)(nil)
			if s == nil {
				b = groups[at].backends[len(groups[at].backends)-(groups[at].end-i)]
				s = b.service
			}
			if !yield(s, b) {
				return
			}
		}
	}
}

// exists reports whether the target has an address of any family.
func (t *target) exists() bool {
	for _, s := range t.services {
		if (len(s.vips) > 0 && !t.each) || len(s.backends) > 0 {
			return true
		}
	}
	return len(t.backends) > 0
}

// addresses returns up to limit addresses of a type in random order.
func (t *target) addresses(qtype uint16, limit int) []netip.Addr {
	var all []netip.Addr
	// Of a service without any address of the type, no task is looked at.
	have := func(s *service) bool {
		return len(s.vips) > 0 && !t.each || s.families[index(qtype == mdns.TypeAAAA)] > 0
	}
	for s, b := range t.holders(have) {
		of := s.vips
		if b != nil {
			of = b.addresses
		}
		for _, a := range of {
			if a.Is4() == (qtype == mdns.TypeA) {
				all = append(all, a)
			}
		}
		if len(all) >= limit {
			return all[:limit]
		}
	}
	return all
}

// shuffled yields the numbers below n in random order.
func shuffled(n int) iter.Seq[int] {
	return func(yield func(int) bool) {
		// moved holds the numbers that are not at their place.
		moved := make(map[int]int)
		at := func(i int) int {
			if j, ok := moved[i]; ok {
				return j
			}
			return i
		}
		for i := range n {
			j := i + rand.IntN(n-i)
			chosen := at(j)
			moved[j] = at(i)
			if !yield(chosen) {
				return
			}
		}
	}
}

// cutPort reads a name as "_port._protocol.rest".
func cutPort(name string) (port, protocol, rest string, ok bool) {
	port, rest, _ = strings.Cut(name, ".")
	protocol, rest, ok = strings.Cut(rest, ".")
	ok = ok && len(port) > 1 && port[0] == '_' && len(protocol) > 1 && protocol[0] == '_'
	if !ok {
		return "", "", "", false
	}
	return port[1:], protocol[1:], rest, true
}

// service answers a question for a named port.
func (t *target) service(q mdns.Question, port, protocol string, limit int) result {
	r := result{known: true}
	named := func(p *musterv1.PortConfig) bool {
		return fold(p.GetName()) == port && fold(protocolName(p)) == protocol
	}
	limit = min(limit, maxPorts)
	for s, b := range t.holders(func(s *service) bool { return slices.ContainsFunc(s.ports, named) }) {
		for _, p := range s.ports {
			if !named(p) {
				continue
			}
			r.exists = true
			if q.Qtype != mdns.TypeSRV || len(r.answer) == limit {
				return r
			}
			name, addresses := s.name, s.vips
			if b != nil {
				name, addresses = b.name(), b.addresses
			}
			name += "." + t.network.name + "."
			if _, valid := mdns.IsDomainName(name); !valid {
				continue
			}
			r.answer = append(r.answer, &mdns.SRV{
				Hdr:  mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypeSRV, Class: mdns.ClassINET, Ttl: ttl},
				Port: uint16(p.GetTargetPort()), Target: name,
			})
			for _, a := range addresses {
				r.extra = append(r.extra, record(name, a))
			}
		}
	}
	return r
}

func protocolName(p *musterv1.PortConfig) string {
	if p.GetProtocol() == musterv1.PortConfig_PROTOCOL_UNSPECIFIED {
		return musterv1.PortConfig_TCP.String()
	}
	return p.GetProtocol().String()
}

// pointer answers a question for the name of an address. The names of addresses of the
// client's networks are asked of no resolver.
func (z *zone) pointer(c *client, q mdns.Question, address netip.Addr) result {
	var r result
	for _, id := range c.networks {
		n := z.networks[id]
		if n == nil {
			continue
		}
		if o, ok := n.owners[address]; ok && !n.ingress {
			name := o.service.name
			if o.backend != nil {
				name = o.backend.name()
			}
			name += "." + n.name + "."
			r = result{known: true, exists: true}
			if _, valid := mdns.IsDomainName(name); valid && q.Qtype == mdns.TypePTR {
				r.answer = []mdns.RR{&mdns.PTR{
					Hdr: mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypePTR, Class: mdns.ClassINET, Ttl: ttl}, Ptr: name,
				}}
			}
			return r
		}
		for _, subnet := range n.subnets {
			r.known = r.known || subnet.Contains(address)
		}
	}
	return r
}

// reverse reads the name under which an address is looked up.
func reverse(name string) (netip.Addr, bool) {
	if short, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(short, ".")
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	short, ok := strings.CutSuffix(name, ".ip6.arpa")
	// 32 digits with a dot between each two.
	if !ok || len(short) != 63 {
		return netip.Addr{}, false
	}
	var text []byte
	for i := len(short) - 1; i >= 0; i -= 2 {
		if i > 0 && short[i-1] != '.' {
			return netip.Addr{}, false
		}
		if text = append(text, short[i]); len(text)%5 == 4 && i > 0 {
			text = append(text, ':')
		}
	}
	a, err := netip.ParseAddr(string(text))
	return a, err == nil
}

// record returns the record of an address.
func record(name string, a netip.Addr) mdns.RR {
	header := mdns.RR_Header{Name: name, Class: mdns.ClassINET, Ttl: ttl}
	if a.Is4() {
		header.Rrtype = mdns.TypeA
		return &mdns.A{Hdr: header, A: a.AsSlice()}
	}
	header.Rrtype = mdns.TypeAAAA
	return &mdns.AAAA{Hdr: header, AAAA: a.AsSlice()}
}
