package networksdk

import (
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// PartSize is about the size in bytes of the largest part that a request should be sent in.
const PartSize = MaxRequest / 4

// Split returns a request as several that have at most about so many bytes each. What
// belongs to a network comes after the network, and backends after their service.
func Split(r *networkv1.ApplyRequest, limit int) []*networkv1.ApplyRequest {
	s := &splitter{limit: limit, node: r.GetNode()}
	s.next()
	part := func(m proto.Message) *networkv1.ApplyRequest { return s.room(proto.Size(m)) }
	// Names are small.
	s.current.RemovedNetworks, s.current.RemovedPeers, s.current.RemovedServices = r.GetRemovedNetworks(), r.GetRemovedPeers(), r.GetRemovedServices()
	for _, n := range r.GetNetworks() {
		p := part(n)
		p.Networks = append(p.Networks, n)
	}
	for _, peer := range r.GetPeers() {
		p := part(peer)
		p.Peers = append(p.Peers, peer)
	}
	for _, service := range r.GetServices() {
		p := part(service)
		p.Services = append(p.Services, service)
	}
	for _, b := range r.GetBackends() {
		for _, some := range splitBackends(b, limit) {
			p := part(some)
			p.Backends = append(p.Backends, some)
		}
	}
	for i, p := range s.all {
		p.Complete, p.More = r.GetComplete() && i == 0, r.GetComplete() && i < len(s.all)-1
	}
	return s.all
}

// splitter collects what fits into one request.
type splitter struct {
	limit, size int
	node        *networkv1.Node
	current     *networkv1.ApplyRequest
	all         []*networkv1.ApplyRequest
}

func (s *splitter) next() {
	s.current, s.size = &networkv1.ApplyRequest{Node: s.node}, 0
	s.all = append(s.all, s.current)
}

// room returns the request that has room for so many bytes.
func (s *splitter) room(size int) *networkv1.ApplyRequest {
	if s.size > 0 && s.size+size > s.limit {
		s.next()
	}
	s.size += size
	return s.current
}

// splitBackends returns the backends of a service as several messages. Those after the
// first are changes.
func splitBackends(b *networkv1.Backends, limit int) []*networkv1.Backends {
	if proto.Size(b) <= limit {
		return []*networkv1.Backends{b}
	}
	fresh := func(complete bool) *networkv1.Backends {
		return &networkv1.Backends{NetworkId: b.GetNetworkId(), ServiceId: b.GetServiceId(), Complete: complete}
	}
	all := []*networkv1.Backends{fresh(b.GetComplete())}
	all[0].Removed = b.GetRemoved()
	size := proto.Size(all[0])
	for _, backend := range b.GetBackends() {
		n := proto.Size(backend)
		if size > 0 && size+n > limit {
			all, size = append(all, fresh(false)), 0
		}
		last := all[len(all)-1]
		last.Backends, size = append(last.Backends, backend), size+n
	}
	return all
}
