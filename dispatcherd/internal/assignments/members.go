package assignments

import (
	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// Members are what an object brings with it: a network its peers, services and
// backends. Tasks do not refer to members. A worker has them while it has the
// object.
type Members interface {
	// Read returns a reader that has read nothing.
	Read() MemberReader
}

// MemberReader reads the members of one object for one session.
type MemberReader interface {
	// Next returns all members on the first call, and then the changes since the last
	// call, in the order in which a worker must apply them.
	Next() []MemberChange
	// Close says that Next is not called again.
	Close()
}

// MemberChange is a member that is new or changed, or one that is withdrawn. All
// sessions share it, so it must not be changed.
type MemberChange struct {
	// Object is nil if the member is withdrawn.
	Object    *dispatcherv1.AssignedObject
	Withdrawn *dispatcherv1.ObjectRef
	// Size is the size of the message in bytes.
	Size int
	// At is when a task reported what made the change, in Unix milliseconds; 0 if it
	// was something else.
	At int64
}

// bring sends an object that brings members, or what has changed of it and of its
// members.
func (l *Sent) bring(o *Object, p *packer) *sentObject {
	sent := l.objects[o.Ref]
	switch {
	case sent == nil:
		sent = &sentObject{version: o.Version, members: o.Members.Read()}
		l.objects[o.Ref] = sent
		p.addObject(o)
	case sent.version < o.Version:
		sent.version = o.Version
		p.addObject(o)
	}
	l.sendMembers(sent, p)
	return sent
}

func (l *Sent) sendMembers(sent *sentObject, p *packer) {
	changes := sent.members.Next()
	if len(changes) > 0 {
		p.separate(sent)
	}
	for _, change := range changes {
		p.addMember(sent, change)
		if !p.complete && change.At > 0 && (l.memberChange == 0 || change.At < l.memberChange) {
			l.memberChange = change.At
		}
	}
}

// hold brings the worker up to date with an object that the node may need without a
// task.
func (l *Sent) hold(o *Object, p *packer) {
	if l.protocol < o.Ref.Kind.protocol() {
		return
	}
	sent, held := l.objects[o.Ref], o.Held && o.Message != nil
	switch {
	case sent == nil && !held:
		return // a task that refers to it brings it
	case o.Message != nil:
		sent = l.bring(o, p)
	default:
		// Tasks that the worker still has keep the object.
		l.sendMembers(sent, p)
	}
	switch {
	case held && !sent.held:
		sent.users++
	case !held && sent.held:
		l.release([]Ref{o.Ref})
	}
	sent.held = held
}

// Networks returns the ids of the networks that a task is attached to. The worker may
// have had them before this session, in which they may be missing still.
func (l *Sent) Networks(task string) []string {
	if t := l.tasks[task]; t != nil {
		return t.networks
	}
	return nil
}

// TakeMemberChange returns when the earliest change of members was reported that was
// sent since the last call, in Unix milliseconds, and 0 if there was none. It leaves
// out members of the complete set.
func (l *Sent) TakeMemberChange() int64 {
	at := l.memberChange
	l.memberChange = 0
	return at
}

// Close says that nothing more is sent.
func (l *Sent) Close() {
	for _, sent := range l.objects {
		if sent.members != nil {
			sent.members.Close()
		}
	}
	clear(l.objects)
}
