// Package vips gives services virtual addresses: one for each service and network. It is
// pure.
package vips

import (
	"net/netip"

	"github.com/musterhq/muster/allocatord/ipam"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
)

// Pool holds the virtual addresses of one network.
type Pool struct {
	network  string
	layout   *addresses.Layout
	numbers  *ipam.Numbers
	services map[string]uint32
}

// New returns the pool of a network, of which no service has an address. The search for
// the first one begins at next.
func New(network string, layout *addresses.Layout, next uint32) *Pool {
	usable := func(number uint32) bool {
		for _, a := range layout.Virtual.At(number) {
			if !layout.Given(a) {
				return false
			}
		}
		return true
	}
	return &Pool{
		network: network, layout: layout, services: map[string]uint32{},
		numbers: ipam.NewNumbers(layout.Virtual.Size(), next, usable),
	}
}

// Restore notes the virtual addresses that a service's endpoint says it has on the
// network. It reports false, and changes nothing, if they are not the network's, or
// another service has one of them.
func (p *Pool) Restore(service string, of []*musterv1.VirtualIP) bool {
	number, found := uint32(0), 0
	for _, v := range of {
		if v.GetNetworkId() != p.network {
			continue
		}
		prefix, err := netip.ParsePrefix(v.GetAddress())
		if err != nil {
			return false
		}
		n, ok := p.layout.Virtual.Offset(prefix.Addr())
		if !ok || found > 0 && n != number {
			return false
		}
		number = n
		found++
	}
	if old, has := p.services[service]; has && old != number {
		return false
	}
	if found == 0 || found != len(p.layout.Virtual.At(number)) || !p.numbers.Restore(number, service) {
		return false
	}
	p.services[service] = number
	return true
}

// Give returns the virtual addresses of a service, which it gets if it has none; false if
// all are in use.
func (p *Pool) Give(service string) ([]*musterv1.VirtualIP, bool) {
	number, has := p.services[service]
	if !has {
		var ok bool
		if number, ok = p.numbers.Take(service); !ok {
			return nil, false
		}
		p.services[service] = number
	}
	var of []*musterv1.VirtualIP
	for _, a := range p.layout.Virtual.At(number) {
		of = append(of, &musterv1.VirtualIP{NetworkId: p.network, Address: netip.PrefixFrom(a, p.layout.Bits(a)).String()})
	}
	return of, true
}

// Free takes the virtual addresses of a service from it.
func (p *Pool) Free(service string) {
	if number, has := p.services[service]; has {
		p.numbers.Release(number)
		delete(p.services, service)
	}
}

// Held returns how many services have an address.
func (p *Pool) Held() int { return len(p.services) }

// Next returns where the next search begins.
func (p *Pool) Next() uint32 { return p.numbers.Next() }
