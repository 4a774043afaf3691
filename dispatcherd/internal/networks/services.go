package networks

import (
	"maps"
	"strings"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// service is a service that is on a network.
type service struct {
	// networks are those that the service is on.
	networks map[string]struct{}
	// backed are the networks on which it has backends.
	backed map[string]struct{}
}

// followServices continues with the services and what they consist of.
func (a *advance) followServices() {
	t := a.tables
	for c := range t.Services.Changes(a.from, a.to) {
		a.staleServices[c.Key()] = struct{}{}
	}
	for c := range t.Endpoints.Changes(a.from, a.to) {
		a.staleServices[c.Key()] = struct{}{}
	}
	for c := range t.Rollouts.Changes(a.from, a.to) {
		if c.Old == nil || c.New == nil || c.Old.Value.RolledBack != c.New.Value.RolledBack {
			a.staleServices[c.Key()] = struct{}{}
		}
	}
	if len(a.specless) > 0 {
		for c := range t.Specs.Changes(a.from, a.to) {
			maps.Copy(a.staleServices, a.specless[c.Key()])
			delete(a.specless, c.Key())
		}
	}
	for id := range a.staleServices {
		a.setService(id)
	}
}

// setService puts a service on the networks that the spec of its tasks names, on the
// ingress network if it publishes ports there, and on those where it still has backends.
func (a *advance) setService(id string) {
	record, ok := a.tables.Services.Get(a.to, id)
	var spec *musterv1.TaskSpec
	rollout, _ := a.tables.Rollouts.Get(a.to, id)
	effective := state.EffectiveSpec(record.Value, rollout.Value)
	if ok {
		key := state.SpecKey(effective.Digest)
		e, found := a.tables.Specs.Get(a.to, key)
		if !found {
			// It stays where it is until the spec arrives.
			if a.specless[key] == nil {
				a.specless[key] = map[string]struct{}{}
			}
			a.specless[key][id] = struct{}{}
			return
		}
		spec = e.Value.GetTask()
	}
	s := a.services[id]
	networks := map[string]struct{}{}
	if ok {
		for _, network := range state.NetworksOf(record.Value, spec, effective.Endpoint) {
			networks[network] = struct{}{}
		}
		if s != nil {
			maps.Copy(networks, s.backed)
		}
	}
	if s == nil {
		if len(networks) == 0 {
			return
		}
		s = &service{backed: map[string]struct{}{}}
		a.services[id] = s
	}
	endpoint, _ := a.tables.Endpoints.Get(a.to, id)
	for network := range networks {
		a.network(network).set(memberKey{service: id}, serviceOn(network, id, record.Value.GetSpec().GetName(), effective.Endpoint, spec, endpoint.Value.GetEndpoint()), 0)
	}
	for network := range s.networks {
		if _, ok := networks[network]; !ok {
			a.network(network).set(memberKey{service: id}, nil, 0)
		}
	}
	s.networks = networks
	if len(s.networks)+len(s.backed) == 0 {
		delete(a.services, id)
	}
}

// serviceOn returns a service as the nodes of a network get it.
func serviceOn(network, id, name string, wanted *musterv1.EndpointSpec, spec *musterv1.TaskSpec, allocated *musterv1.Endpoint) *networkv1.Service {
	m := &networkv1.Service{NetworkId: network, Id: id, Name: name, Mode: wanted.GetMode(), Ports: wanted.GetPorts()}
	if allocated != nil {
		// The mode changes together with the virtual addresses.
		m.Mode, m.Ports = allocated.GetSpec().GetMode(), allocated.Ports
	}
	if m.Mode == musterv1.EndpointSpec_MODE_UNSPECIFIED {
		m.Mode = musterv1.EndpointSpec_VIP
	}
	if m.Mode == musterv1.EndpointSpec_VIP {
		for _, vip := range allocated.GetVirtualIps() {
			if vip.NetworkId == network {
				address, _, _ := strings.Cut(vip.Address, "/")
				m.VirtualIps = append(m.VirtualIps, address)
			}
		}
	}
	for _, attachment := range spec.GetNetworks() {
		if attachment.Target == network {
			m.Aliases = append(m.Aliases, attachment.Aliases...)
		}
	}
	return m
}
