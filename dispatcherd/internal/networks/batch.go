package networks

import (
	"slices"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/internal/backends"
)

// maxBackends is the greatest number of backends in one object. They have less than 32 KiB.
const maxBackends = 400

// batch is what has changed in a feed, as workers receive it. Sessions share it.
type batch struct {
	changes []assignments.MemberChange
	// peers are the nodes that the first changes are about. A node is not its own peer.
	peers []string
	// read is the number of the last change.
	read uint64
}

// without returns the changes except for the one about a node itself.
func (b batch) without(node string) []assignments.MemberChange {
	i := slices.Index(b.peers, node)
	if i < 0 {
		return b.changes
	}
	return slices.Concat(b.changes[:i], b.changes[i+1:])
}

// put adds a new or changed member.
func (b *batch) put(o *dispatcherv1.AssignedObject, at int64) {
	b.changes = append(b.changes, assignments.MemberChange{Object: o, Size: proto.Size(o), At: at})
}

// withdraw adds a member that is gone.
func (b *batch) withdraw(ref *dispatcherv1.ObjectRef) {
	b.changes = append(b.changes, assignments.MemberChange{Withdrawn: ref, Size: proto.Size(ref)})
}

// pack returns changed members as workers receive them that have read up to a number:
// peers first, then services, then the backends of each service together.
func (f *feed) pack(changed []*member, number uint64) batch {
	var b batch
	changes := map[string][]*member{}
	var services []string
	of := func(service string) {
		if _, ok := changes[service]; !ok {
			changes[service] = nil
			services = append(services, service)
		}
	}
	for _, m := range changed {
		if m.key.node == "" {
			continue
		}
		b.peers = append(b.peers, m.key.node)
		if m.message == nil {
			ref := &networkv1.PeerRef{NetworkId: f.id, NodeId: m.key.node}
			b.withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Peer{Peer: ref}})
			continue
		}
		b.put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Peer{Peer: m.message.(*networkv1.Peer)}}, 0)
	}
	for _, m := range changed {
		switch {
		case m.key.service == "":
		case m.key.task != "":
			of(m.key.service)
			changes[m.key.service] = append(changes[m.key.service], m)
		case m.message == nil:
			ref := &networkv1.ServiceRef{NetworkId: f.id, ServiceId: m.key.service}
			b.withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Service{Service: ref}})
		default:
			if m.born > number {
				of(m.key.service)
			}
			b.put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Service{Service: m.message.(*networkv1.Service)}}, 0)
		}
	}
	for _, service := range services {
		f.packBackends(&b, service, changes[service], number)
	}
	return b
}

// packBackends adds changed backends of one service. They are all that there are if
// the service is new to the reader.
func (f *feed) packBackends(b *batch, service string, changed []*member, number uint64) {
	complete := f.members[memberKey{service: service}].Value.(*member).born > number
	if complete {
		changed = slices.DeleteFunc(changed, func(m *member) bool { return m.message == nil })
	}
	for first := true; first || len(changed) > 0; first = false {
		some := changed[:min(maxBackends, len(changed))]
		changed = changed[len(some):]
		o := &networkv1.PackedBackends{
			NetworkId: f.id, ServiceId: service, Complete: complete && first, More: len(changed) > 0, Total: uint32(f.live[service]),
		}
		at := int64(0)
		var new []*networkv1.Backend
		var gone []string
		for _, m := range some {
			if m.message == nil {
				gone = append(gone, m.key.task)
				continue
			}
			new = append(new, m.message.(*networkv1.Backend))
			if number > 0 && m.at > 0 && (at == 0 || m.at < at) {
				at = m.at
			}
		}
		o.Changes = backends.Pack(new, gone)
		b.put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_PackedBackends{PackedBackends: o}}, at)
	}
}
