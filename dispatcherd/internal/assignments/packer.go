package assignments

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
)

// packer fills messages up to their limits.
type packer struct {
	limits   Limits
	protocol uint32
	complete bool
	messages []*dispatcherv1.Assignments
	open     *dispatcherv1.Assignments
	count    int
	size     int
	// withdrew holds, by the object that brought them, the last message that withdraws
	// members.
	withdrew map[*sentObject]*dispatcherv1.Assignments
}

// add puts a task into the open message, after the objects that it is the first
// to refer to.
func (p *packer) add(task *dispatcherv1.AssignedTask, objects []*Object) {
	size := proto.Size(task)
	for _, object := range objects {
		size += proto.Size(object.Message)
	}
	m := p.room(size)
	if p.protocol == 0 {
		for _, object := range objects {
			m.Specs = append(m.Specs, object.wire().GetSpec())
		}
		m.Tasks = append(m.Tasks, task)
		return
	}
	for _, object := range objects {
		m.Objects = append(m.Objects, object.wire())
	}
	m.Objects = append(m.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Task{Task: task}})
}

// need returns the objects that must come with a task, and puts those that may be long into
// messages before it.
func (p *packer) need(needed []*Object, o *Object) []*Object {
	if o.Ref.Kind.file() {
		p.addObject(o)
		return needed
	}
	return append(needed, o)
}

// addObject puts an object into the open message. Protocol 0 has no such objects.
func (p *packer) addObject(o *Object) {
	m := p.room(proto.Size(o.Message))
	m.Objects = append(m.Objects, o.wire())
}

// separate begins a new message if the open one withdraws members of an object. A worker
// applies withdrawals after the objects of a message, so a member that is there again
// must come in a later one. Several tasks of one call may read the members, which
// change in between.
func (p *packer) separate(of *sentObject) {
	if m := p.withdrew[of]; m != nil && m == p.open {
		p.open = nil
	}
}

// addMember puts a member of an object into the open message, or its withdrawal.
func (p *packer) addMember(of *sentObject, change MemberChange) {
	if packed := change.Object.GetPackedBackends(); packed != nil && p.protocol < packedProtocol {
		p.addUnpacked(packed)
		return
	}
	m := p.room(change.Size)
	if change.Object == nil {
		m.Withdrawn = append(m.Withdrawn, change.Withdrawn)
		if p.withdrew == nil {
			p.withdrew = map[*sentObject]*dispatcherv1.Assignments{}
		}
		p.withdrew[of] = m
		return
	}
	m.Objects = append(m.Objects, change.Object)
}

// packedProtocol is the first assignment protocol that has packed backends.
const packedProtocol = 3

// maxUnpacked is the greatest number of backends in one object for a worker of an older
// protocol.
const maxUnpacked = 500

// addUnpacked puts backends into messages as workers of protocol 2 receive them.
func (p *packer) addUnpacked(packed *networkv1.PackedBackends) {
	changed, gone, err := backends.Unpack(packed.Changes)
	if err != nil {
		panic(fmt.Sprintf("assignments: %v", err)) // a Reader made it
	}
	for first := true; first || len(changed)+len(gone) > 0; first = false {
		b := &networkv1.Backends{NetworkId: packed.NetworkId, ServiceId: packed.ServiceId, Complete: packed.Complete && first}
		n := min(maxUnpacked, len(changed))
		b.Backends, changed = changed[:n], changed[n:]
		n = min(maxUnpacked, len(gone))
		b.Removed, gone = gone[:n], gone[n:]
		m := p.room(proto.Size(b))
		m.Objects = append(m.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Backends{Backends: b}})
	}
}

// withdrawTask has the worker stop and remove a task.
func (p *packer) withdrawTask(id string) {
	m := p.room(len(id) + 4)
	if p.protocol == 0 {
		m.Removed = append(m.Removed, id)
		return
	}
	m.Withdrawn = append(m.Withdrawn, &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Task{Task: id}})
}

// withdrawObject lets the worker drop an object.
func (p *packer) withdrawObject(ref Ref) {
	m := p.room(len(ref.ID) + 4)
	m.Withdrawn = append(m.Withdrawn, ref.wire())
}

// room returns a message with room for an object of a size in bytes.
func (p *packer) room(size int) *dispatcherv1.Assignments {
	if p.open != nil && (p.count >= p.limits.Objects || p.size+size > p.limits.Bytes) {
		p.open = nil
	}
	if p.open == nil {
		p.open = &dispatcherv1.Assignments{Complete: p.complete}
		p.messages = append(p.messages, p.open)
		p.count, p.size = 0, 0
	}
	p.count++
	p.size += size
	return p.open
}

// finish returns the messages.
func (p *packer) finish() []*dispatcherv1.Assignments {
	if !p.complete {
		return p.messages
	}
	if len(p.messages) == 0 {
		p.messages = []*dispatcherv1.Assignments{{Complete: true}}
	}
	p.messages[len(p.messages)-1].Last = true
	return p.messages
}
