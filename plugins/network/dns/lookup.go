package dns

import (
	"math/rand/v2"
	"net/netip"
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
			for _, b := range s.backends {
				if b.slot == slot {
					t.backends = append(t.backends, b)
				}
			}
		}
	}
	return t
}

// holders calls f with each service that stands for itself and each task that does.
func (t *target) holders(f func(s *service, b *backend)) {
	for _, s := range t.services {
		if len(s.vips) > 0 && !t.each {
			f(s, nil)
			continue
		}
		for _, b := range s.backends {
			f(s, b)
		}
	}
	for _, b := range t.backends {
		f(b.service, b)
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
	t.holders(func(s *service, b *backend) {
		of := s.vips
		if b != nil {
			of = b.addresses
		}
		for _, a := range of {
			if a.Is4() == (qtype == mdns.TypeA) {
				all = append(all, a)
			}
		}
	})
	return pick(all, limit)
}

// pick returns up to limit elements in random order. It moves them.
func pick[T any](all []T, limit int) []T {
	n := min(len(all), limit)
	for i := range n {
		if j := i + rand.IntN(len(all)-i); j != i {
			all[i], all[j] = all[j], all[i]
		}
	}
	return all[:n]
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
	type place struct {
		name      string
		port      uint16
		addresses []netip.Addr
	}
	var places []place
	t.holders(func(s *service, b *backend) {
		for _, p := range s.ports {
			if fold(p.GetName()) != port || fold(protocolName(p)) != protocol {
				continue
			}
			at := place{s.name, uint16(p.GetTargetPort()), s.vips}
			if b != nil {
				at.name, at.addresses = b.name(), b.addresses
			}
			at.name += "." + t.network.name + "."
			places = append(places, at)
		}
	})
	r.exists = len(places) > 0
	if q.Qtype != mdns.TypeSRV {
		return r
	}
	for _, p := range pick(places, min(limit, maxPorts)) {
		if _, valid := mdns.IsDomainName(p.name); !valid {
			continue
		}
		r.answer = append(r.answer, &mdns.SRV{
			Hdr:  mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypeSRV, Class: mdns.ClassINET, Ttl: ttl},
			Port: p.port, Target: p.name,
		})
		for _, a := range p.addresses {
			r.extra = append(r.extra, record(p.name, a))
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
