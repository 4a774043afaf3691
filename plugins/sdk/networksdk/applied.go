package networksdk

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// applied is what a server remembers of the requests that its plugin has carried
// out. It does not change.
type applied struct {
	networks map[string]*appliedNetwork
}

// appliedNetwork is a network in its last valid form.
type appliedNetwork struct {
	message *networkv1.Network
	subnets []netip.Prefix
	// services are the ids of the services on it.
	services map[string]struct{}
}

// with leaves out of a request what is invalid, and returns what is applied once the
// request is carried out. A request is refused as a whole only if it does not say
// for which node it is.
func (a *applied) with(r *networkv1.ApplyRequest) (*applied, *faults, error) {
	if err := checkNode(r.GetNode()); err != nil {
		return nil, nil, invalid(err)
	}
	old := map[string]*appliedNetwork{}
	if a != nil {
		old = a.networks
	}
	next, failed := &applied{networks: map[string]*appliedNetwork{}}, newFaults()
	if !r.GetComplete() {
		next.networks = maps.Clone(old)
	}
	c := &change{complete: r.GetComplete(), old: old, next: next, faults: failed, fresh: map[string]bool{}}
	r.Networks = keep(r.GetNetworks(), c.network)
	r.RemovedNetworks = keep(r.GetRemovedNetworks(), func(id *string) bool {
		delete(next.networks, *id)
		return checkID(*id) == nil
	})
	r.Peers = keep(r.GetPeers(), func(p **networkv1.Peer) bool {
		return c.part((*p).GetNetworkId(), "peer", (*p).GetNodeId(), func(*appliedNetwork) error { return checkPeer(*p) })
	})
	r.RemovedPeers = keep(r.GetRemovedPeers(), func(p **networkv1.PeerRef) bool {
		return checkID((*p).GetNetworkId()) == nil && checkID((*p).GetNodeId()) == nil
	})
	r.Services = keep(r.GetServices(), func(s **networkv1.Service) bool {
		return c.part((*s).GetNetworkId(), "service", (*s).GetName(), func(n *appliedNetwork) error {
			err := checkService(*s, n.subnets)
			if err == nil {
				c.own((*s).GetNetworkId()).services[(*s).GetId()] = struct{}{}
			}
			return err
		})
	})
	r.RemovedServices = keep(r.GetRemovedServices(), func(s **networkv1.ServiceRef) bool {
		if _, ok := next.networks[(*s).GetNetworkId()]; ok {
			delete(c.own((*s).GetNetworkId()).services, (*s).GetServiceId())
		}
		return checkID((*s).GetNetworkId()) == nil && checkID((*s).GetServiceId()) == nil
	})
	r.Backends = keep(r.GetBackends(), func(b **networkv1.Backends) bool { return c.backends(*b) })
	return next, failed, nil
}

// change is one request on its way into what is applied.
type change struct {
	complete bool
	old      map[string]*appliedNetwork
	next     *applied
	faults   *faults
	// fresh are the networks whose services were copied, so that they can change.
	fresh map[string]bool
}

// network checks a network. One that is invalid stays as it was, if it was there.
func (c *change) network(n **networkv1.Network) bool {
	id := (*n).GetId()
	if *n == nil {
		return false
	}
	if _, twice := c.next.networks[id]; twice && c.complete {
		c.faults.add(id, errors.New("the network is named twice"))
		return false
	}
	before := c.old[id]
	now := &appliedNetwork{message: *n, services: map[string]struct{}{}}
	if before != nil && !c.complete {
		now.services = before.services
	}
	var err error
	if now.subnets, err = checkNetwork(*n); err != nil {
		c.faults.add(id, err)
		if before == nil {
			return false
		}
		*n, now.message, now.subnets = before.message, before.message, before.subnets
	}
	c.next.networks[id] = now
	return true
}

// part checks something that belongs to a network.
func (c *change) part(network, kind, name string, check func(*appliedNetwork) error) bool {
	n, known := c.next.networks[network]
	if !known {
		c.faults.warn(network, fmt.Errorf("%s %.64q: the network has not been applied", kind, name))
		return false
	}
	if err := check(n); err != nil {
		c.faults.warn(network, fmt.Errorf("%s %.64q: %w", kind, name, err))
		return false
	}
	return true
}

// backends leaves out backends that are invalid; the others of their service stay.
func (c *change) backends(b *networkv1.Backends) bool {
	return c.part(b.GetNetworkId(), "backends of service", b.GetServiceId(), func(n *appliedNetwork) error {
		if _, known := n.services[b.GetServiceId()]; !known {
			return errors.New("the service has not been applied")
		}
		b.Backends = keep(b.GetBackends(), func(one **networkv1.Backend) bool {
			return c.part(b.GetNetworkId(), "backend", (*one).GetTaskId(), func(*appliedNetwork) error { return checkBackend(*one, n.subnets) })
		})
		b.Removed = keep(b.GetRemoved(), func(id *string) bool { return checkID(*id) == nil })
		return nil
	})
}

// own returns a network that may be changed.
func (c *change) own(id string) *appliedNetwork {
	n := c.next.networks[id]
	if !c.fresh[id] {
		c.fresh[id] = true
		n = &appliedNetwork{message: n.message, subnets: n.subnets, services: maps.Clone(n.services)}
		c.next.networks[id] = n
	}
	return n
}

// keep returns the elements that are wanted. It may change them.
func keep[T any](all []T, wanted func(*T) bool) []T {
	kept := all[:0]
	for i := range all {
		if wanted(&all[i]) {
			kept = append(kept, all[i])
		}
	}
	clear(all[len(kept):])
	return kept
}

// faults are what is wrong with networks, by id: with a network as a whole, or only with
// something that belongs to it.
type faults struct{ networks, parts map[string][]string }

func newFaults() *faults { return &faults{map[string][]string{}, map[string][]string{}} }

// add notes an error of a network. Errors of [Warning] are about a part of it.
func (f *faults) add(network string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			f.add(network, one)
		}
		return
	}
	var warning *warningError
	switch {
	case err == nil:
	case errors.As(err, &warning):
		f.warn(network, err)
	default:
		f.networks[network] = append(f.networks[network], err.Error())
	}
}

func (f *faults) warn(network string, err error) {
	f.parts[network] = append(f.parts[network], err.Error())
}

// maxFault is the length that the message of one network is cut to, in bytes.
const maxFault = 1 << 10

// messages returns one message for each network: the first fault and the number of
// others.
func messages(texts map[string][]string) []*networkv1.NetworkError {
	var all []*networkv1.NetworkError
	for _, id := range slices.Sorted(maps.Keys(texts)) {
		text := clean(texts[id][0], maxFault)
		if more := len(texts[id]) - 1; more > 0 {
			text = fmt.Sprintf("%s (and %d more)", text, more)
		}
		all = append(all, &networkv1.NetworkError{NetworkId: clean(id, maxName), Message: text})
	}
	return all
}

// clean makes a text fit for a message of protobuf.
func clean(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "\uFFFD")
}
