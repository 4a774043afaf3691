// Package ports gives services the ports that all nodes answer (mode INGRESS). They are
// one pool for the cluster, with a port of each number for each protocol. It is
// pure.
package ports

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
)

// Ports that are chosen for services that ask for none.
const (
	FirstDynamic = 30000
	LastDynamic  = 32767
)

// Port is a port that one service can have.
type Port struct {
	Protocol musterv1.PortConfig_Protocol
	Number   uint32
}

func (p Port) String() string {
	return fmt.Sprintf("%d/%s", p.Number, strings.ToLower(p.Protocol.String()))
}

// Missing is a port that a service does not get.
type Missing struct {
	// Port is what it asks for. Number 0: any of the dynamic ports, which are all in
	// use.
	Port
	// Holder is the service that has the port.
	Holder string
}

// Pool holds the ports of a cluster.
type Pool struct {
	holders  map[Port]string
	services map[string][]Port
	// missing holds the ports that services wait for; the number is 0 for a dynamic
	// port.
	missing map[Port]map[string]bool
}

// New returns a pool of which no service has a port.
func New() *Pool {
	return &Pool{holders: map[Port]string{}, services: map[string][]Port{}, missing: map[Port]map[string]bool{}}
}

// Restore notes the ports that a service's endpoint says it has. One that another service
// has already is left to that service.
func (p *Pool) Restore(service string, published []*musterv1.PortConfig) {
	for _, c := range published {
		if state.IsIngress(c) && c.GetPublishedPort() != 0 {
			p.take(service, Port{defaults.Protocol(c), c.GetPublishedPort()})
		}
	}
}

func (p *Pool) take(service string, port Port) bool {
	if holder, held := p.holders[port]; held {
		return holder == service
	}
	p.holders[port] = service
	p.services[service] = append(p.services[service], port)
	return true
}

// Set gives a service the ports that its spec asks for, as far as no other service has
// them, and takes all others from it. It returns the ports as published, in the order of
// the spec, and those that are missing. A port that was chosen for the service is kept
// while the spec asks for any port for the same target and protocol: published says what
// the service's endpoint has now. Ports in mode HOST are published as they are.
//
// Freed lists services that waited for a port that the service no longer has: they must
// be set again.
func (p *Pool) Set(service string, spec, published []*musterv1.PortConfig) (got []*musterv1.PortConfig, missing []Missing, freed []string) {
	before := p.services[service]
	p.stopWaiting(service)
	wanted := make([]Port, len(spec)) // number 0: a dynamic one
	keep := map[Port]bool{}
	for i, c := range spec {
		wanted[i] = Port{defaults.Protocol(c), c.GetPublishedPort()}
		if state.IsIngress(c) && wanted[i].Number != 0 {
			keep[wanted[i]] = true
		}
	}
	for i, c := range spec {
		if !state.IsIngress(c) || wanted[i].Number != 0 {
			continue
		}
		if number, ok := chosen(c, published, func(port Port) bool { return p.holders[port] == service && !keep[port] }); ok {
			wanted[i].Number = number
			keep[wanted[i]] = true
		}
	}
	// What is given up first can be chosen again at once.
	for _, port := range before {
		if !keep[port] {
			freed = append(freed, p.release(service, port)...)
		}
	}
	for i, c := range spec {
		c = proto.CloneOf(c)
		c.Protocol = wanted[i].Protocol
		if !state.IsIngress(c) {
			got = append(got, c)
			continue
		}
		port := wanted[i]
		if port.Number == 0 {
			port.Number = p.dynamic(port.Protocol, keep)
		}
		if port.Number == 0 || !p.take(service, port) {
			p.wait(service, wanted[i])
			missing = append(missing, Missing{Port: wanted[i], Holder: p.holders[wanted[i]]})
			continue
		}
		keep[port] = true
		c.PublishedPort = port.Number
		got = append(got, c)
	}
	slices.Sort(freed)
	return got, missing, slices.DeleteFunc(slices.Compact(freed), func(s string) bool { return s == service })
}

// chosen returns the port that was chosen for a target and a protocol, and is still the
// service's.
func chosen(c *musterv1.PortConfig, published []*musterv1.PortConfig, free func(Port) bool) (uint32, bool) {
	for _, old := range published {
		port := Port{defaults.Protocol(old), old.GetPublishedPort()}
		if state.IsIngress(old) && old.GetTargetPort() == c.GetTargetPort() &&
			port.Protocol == defaults.Protocol(c) && port.Number >= FirstDynamic && port.Number <= LastDynamic && free(port) {
			return port.Number, true
		}
	}
	return 0, false
}

// dynamic returns a dynamic port that no service has and that the spec does not ask for;
// 0 if there is none.
func (p *Pool) dynamic(protocol musterv1.PortConfig_Protocol, asked map[Port]bool) uint32 {
	for number := uint32(FirstDynamic); number <= LastDynamic; number++ {
		port := Port{protocol, number}
		if _, held := p.holders[port]; !held && !asked[port] {
			return number
		}
	}
	return 0
}

// release takes a port from a service, and returns the services that wait for it.
func (p *Pool) release(service string, port Port) []string {
	delete(p.holders, port)
	left := slices.DeleteFunc(slices.Clone(p.services[service]), func(o Port) bool { return o == port })
	if p.services[service] = left; len(left) == 0 {
		delete(p.services, service)
	}
	waiting := slices.Collect(maps.Keys(p.missing[port]))
	if port.Number >= FirstDynamic && port.Number <= LastDynamic {
		waiting = slices.AppendSeq(waiting, maps.Keys(p.missing[Port{Protocol: port.Protocol}]))
	}
	return waiting
}

func (p *Pool) wait(service string, port Port) {
	if p.missing[port] == nil {
		p.missing[port] = map[string]bool{}
	}
	p.missing[port][service] = true
}

func (p *Pool) stopWaiting(service string) {
	for port, services := range p.missing {
		if delete(services, service); len(services) == 0 {
			delete(p.missing, port)
		}
	}
}

// Holder returns the service that has a port; "" if there is none.
func (p *Pool) Holder(port Port) string { return p.holders[port] }

// Held returns how many ports services have.
func (p *Pool) Held() int { return len(p.holders) }
