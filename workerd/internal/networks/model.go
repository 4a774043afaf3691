package networks

import (
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/network"
)

// entry is a network with all that belongs to it.
type entry struct {
	// object is the network with the node's own addresses. It is nil until the network was
	// sent: restored tasks may have addresses of it before that.
	object *networkv1.Network
	pool   *pool
	own    []netip.Addr
	// withdrawn says that the dispatcher withdrew the network in this session, while a task
	// held it. What changes of its members is not sent from then on.
	withdrawn bool
	peers     map[string]*peer
	services  map[string]*service
	// unsaved says that the store lacks something.
	unsaved bool
}

// peer is another node on a network. seen is the session in which it was sent last.
type peer struct {
	object *networkv1.Peer
	seen   uint64
}

// service is a service on a network.
type service struct {
	// object is nil until the service was sent.
	object   *networkv1.Service
	seen     uint64
	backends backendLog
	// filling is a complete set of backends of which more follows. It is nil if there is
	// none.
	filling *backendLog
	// filled is the session in which all backends were sent.
	filled uint64
}

// member names something that belongs to a network: a peer or a service.
type member struct{ network, id string }

var _ dependencies.Networks = (*Networks)(nil)

// Begin starts a session: a complete set follows, which Complete ends.
func (n *Networks) Begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session++
	for _, e := range n.networks {
		e.withdrawn = false
	}
}

// Complete ends a complete set: what was not in it is removed.
func (n *Networks) Complete() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, e := range n.networks {
		for node, p := range e.peers {
			if p.seen != n.session {
				n.removePeer(e, member{id, node})
			}
		}
		for name, s := range e.services {
			switch {
			case s.seen != n.session:
				n.removeService(e, member{id, name})
			case s.filled != n.session && s.backends.left > 0:
				n.fill(e, s, &networkv1.PackedBackends{NetworkId: id, ServiceId: name, Complete: true})
			}
		}
	}
	n.known = true
	n.wake()
}

// Put takes in a network, a peer, a service or backends.
func (n *Networks) Put(object *dispatcherv1.AssignedObject) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch o := object.GetObject().(type) {
	case *dispatcherv1.AssignedObject_Network:
		n.putNetwork(o.Network)
	case *dispatcherv1.AssignedObject_Peer:
		n.putPeer(o.Peer)
	case *dispatcherv1.AssignedObject_Service:
		n.putService(o.Service)
	case *dispatcherv1.AssignedObject_Backends:
		// They come from a dispatcher of protocol 2, or from the store of such a worker.
		e := n.entry(o.Backends.GetNetworkId())
		s := e.service(o.Backends.GetServiceId())
		n.fill(e, s, s.backends.pack(o.Backends))
	case *dispatcherv1.AssignedObject_PackedBackends:
		e := n.entry(o.PackedBackends.GetNetworkId())
		n.fill(e, e.service(o.PackedBackends.GetServiceId()), o.PackedBackends)
	}
	n.wake()
}

// entry returns a network, which it makes if there is none.
func (n *Networks) entry(id string) *entry {
	e := n.networks[id]
	if e == nil {
		e = &entry{pool: newPool(), peers: map[string]*peer{}, services: map[string]*service{}}
		n.networks[id] = e
	}
	return e
}

// service returns a service of a network, which it makes if there is none.
func (e *entry) service(id string) *service {
	s := e.services[id]
	if s == nil {
		s = &service{}
		e.services[id] = s
	}
	return s
}

func (n *Networks) putNetwork(object *networkv1.Network) {
	e := n.entry(object.GetId())
	if e.withdrawn {
		// All of its members follow.
		e.withdrawn = false
		n.removeMembers(e, object.GetId())
	}
	e.pool.set(object)
	if e.own == nil {
		// A network that is restored has them.
		e.own = parse(object.GetNodeAddresses())
		e.pool.take("", e.own)
	}
	if len(e.pool.blocks) > 0 && !e.pool.within(e.own) {
		e.pool.free("", e.own)
		e.own = e.pool.first()
	}
	object = proto.CloneOf(object)
	object.NodeAddresses = format(e.own)
	if proto.Equal(e.object, object) {
		return
	}
	e.object = object
	for _, a := range n.appliers {
		a.pending.network(object.GetId())
	}
	e.unsaved, n.saveNow = true, true
}

// removeMembers removes the peers and services of a network.
func (n *Networks) removeMembers(e *entry, id string) {
	for node := range e.peers {
		n.removePeer(e, member{id, node})
	}
	for name := range e.services {
		n.removeService(e, member{id, name})
	}
}

func (n *Networks) putPeer(object *networkv1.Peer) {
	e := n.entry(object.GetNetworkId())
	p := e.peers[object.GetNodeId()]
	if p == nil {
		p = &peer{}
		e.peers[object.GetNodeId()] = p
	}
	p.seen = n.session
	if proto.Equal(p.object, object) {
		return
	}
	p.object = object
	n.peerChanged(e, member{object.GetNetworkId(), object.GetNodeId()})
}

func (n *Networks) removePeer(e *entry, m member) {
	delete(e.peers, m.id)
	n.peerChanged(e, m)
}

func (n *Networks) peerChanged(e *entry, m member) {
	for _, a := range n.appliers {
		a.pending.peers[m] = true
	}
	e.unsaved = true
}

func (n *Networks) putService(object *networkv1.Service) {
	e := n.entry(object.GetNetworkId())
	s := e.service(object.GetId())
	s.seen = n.session
	if proto.Equal(s.object, object) {
		return
	}
	if s.object == nil {
		// What a plugin has of an earlier service of this id no longer counts.
		n.backendsChanged(e, s, member{object.GetNetworkId(), object.GetId()}, nil)
	}
	s.object = object
	n.serviceChanged(e, member{object.GetNetworkId(), object.GetId()})
}

func (n *Networks) removeService(e *entry, m member) {
	delete(e.services, m.id)
	n.serviceChanged(e, m)
}

func (n *Networks) serviceChanged(e *entry, m member) {
	for _, a := range n.appliers {
		a.pending.services[m] = true
	}
	e.unsaved = true
}

// fill takes in backends of a service.
func (n *Networks) fill(e *entry, s *service, b *networkv1.PackedBackends) {
	m := member{b.GetNetworkId(), b.GetServiceId()}
	if b.GetComplete() {
		s.filling = &backendLog{}
	}
	log := s.filling
	if log == nil {
		log = &s.backends
	}
	if err := log.append(b); err != nil {
		s.filling = nil
		n.log.Error("failed to take in the backends of a service", zap.String("network", m.network), zap.String("service", m.id), zap.Error(err))
		return
	}
	switch {
	case s.filling == nil && len(b.GetChanges()) > 0:
		n.backendsChanged(e, s, m, b.GetChanges())
	case s.filling != nil && !b.GetMore():
		s.filling, s.filled = nil, n.session
		differs := !s.backends.equal(log)
		s.backends = *log
		if differs {
			n.backendsChanged(e, s, m, nil)
		}
	}
}

// backendsChanged notes which backends of a service have changed, packed; nil stands for
// all.
func (n *Networks) backendsChanged(e *entry, s *service, m member, changes []byte) {
	for _, a := range n.appliers {
		a.pending.changed(m, changes, len(s.backends.packed))
	}
	e.unsaved = true
}

// Remove removes a network with all that belongs to it.
func (n *Networks) Remove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.networks[id] == nil {
		return
	}
	delete(n.networks, id)
	for _, a := range n.appliers {
		a.pending.removed(id)
	}
	n.gone[id], n.saveNow = true, true
	n.wake()
}

// Withdraw removes a peer or a service. A network that is withdrawn while a task holds it
// stays as it is until Remove, or until it is sent again with all that belongs to it.
func (n *Networks) Withdraw(ref *dispatcherv1.ObjectRef) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch r := ref.GetRef().(type) {
	case *dispatcherv1.ObjectRef_Peer:
		if e := n.networks[r.Peer.GetNetworkId()]; e != nil && e.peers[r.Peer.GetNodeId()] != nil {
			n.removePeer(e, member{r.Peer.GetNetworkId(), r.Peer.GetNodeId()})
		}
	case *dispatcherv1.ObjectRef_Service:
		if e := n.networks[r.Service.GetNetworkId()]; e != nil && e.services[r.Service.GetServiceId()] != nil {
			n.removeService(e, member{r.Service.GetNetworkId(), r.Service.GetServiceId()})
		}
	case *dispatcherv1.ObjectRef_Network:
		if e := n.networks[r.Network]; e != nil {
			e.withdrawn = true
		}
		return
	default:
		return
	}
	n.wake()
}

// all returns the backends of a service.
func (s *service) all(m member) *network.Backends {
	return &network.Backends{NetworkID: m.network, ServiceID: m.id, Complete: true, Changes: slices.Clip(s.backends.packed)}
}

// object returns the backends of a service as a dispatcher sends them.
func (l *backendLog) object(m member) *dispatcherv1.AssignedObject {
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_PackedBackends{PackedBackends: &networkv1.PackedBackends{
		NetworkId: m.network, ServiceId: m.id, Complete: true, Total: uint32(l.left), Changes: slices.Concat(l.packed...),
	}}}
}

// objects returns a network as a dispatcher sends it, to be stored.
func (e *entry) objects(id string) *dispatcherv1.Assignments {
	objects := []*dispatcherv1.AssignedObject{{Object: &dispatcherv1.AssignedObject_Network{Network: e.object}}}
	for _, p := range e.peers {
		objects = append(objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Peer{Peer: p.object}})
	}
	for name, s := range e.services {
		if s.object != nil {
			objects = append(objects,
				&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Service{Service: s.object}},
				s.backends.object(member{id, name}))
		}
	}
	return &dispatcherv1.Assignments{Objects: objects}
}
