package assignments

import (
	"maps"
	"slices"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Sent is what one worker was sent in one session. It is not safe for
// concurrent use.
type Sent struct {
	// protocol is the assignment protocol of the session.
	protocol uint32
	tasks    map[string]*sentTask
	objects  map[Ref]*sentObject
	// released are objects that lost a task that refers to them, since objects
	// were last withdrawn.
	released []Ref
	// waiting holds the keys of offers of which something is still missing.
	waiting map[string]struct{}
	// fresh holds when the tasks were assigned that were first sent since the
	// last call of TakeNew, except those of the complete set.
	fresh []int64
	// traced holds the traced tasks that were first sent since the last call of
	// TakeTraced.
	traced []*dispatcherv1.AssignedTask
	// memberChange is what TakeMemberChange returns.
	memberChange int64
}

// sentTask is what a worker was sent of a task.
type sentTask struct {
	service string
	desired musterv1.TaskState
	// assignment is the version of the assignment, which holds the ports.
	assignment uint64
	// objects are what the task refers to; the worker has all of them, except
	// those that the task does not need to stop.
	objects []Ref
	// networks are the ids of the networks that the task is attached to.
	networks []string
	// complete says that the worker has all objects, or needs none to stop.
	complete bool
	// sentAt is when the task was first sent in this session, in Unix
	// milliseconds; 0 if that was in the complete set, where it may not be new.
	sentAt int64
	// assignedAt is the assignment's, until the time that the task took to run
	// was measured. It is 0 if that time means nothing.
	assignedAt int64
	// trace is the task's trace until the task runs or has ended.
	trace string
}

// sentObject is an object that the worker has.
type sentObject struct {
	version uint64
	// digest is that of the content, as in [Object].
	digest string
	// users is the number of sent tasks that refer to it, and one more if it is held.
	users int
	// held says that the node needs the object even if no task refers to it.
	held bool
	// members reads what the object brings with it. It is nil if that is nothing.
	members MemberReader
}

// NewSent returns the record of a session in which nothing was sent. The
// protocol is the newest that the worker understands.
func NewSent(protocol uint32) *Sent {
	return &Sent{
		protocol: min(protocol, Protocol),
		tasks:    map[string]*sentTask{}, objects: map[Ref]*sentObject{}, waiting: map[string]struct{}{},
	}
}

// Complete returns the complete set of a node's offers in messages, and of the
// objects that the node holds.
func (l *Sent) Complete(offers []Offer, held []Object, limits Limits) []*dispatcherv1.Assignments {
	p := packer{limits: limits, protocol: l.protocol, complete: true}
	for i := range held {
		l.hold(&held[i], &p)
	}
	for i := range offers {
		l.offer(&offers[i], &p, 0)
	}
	return p.finish()
}

// Changes returns the messages for offers, and for objects that nodes can hold, that
// have or may have changed. It returns none if the worker is up to date.
func (l *Sent) Changes(offers []Offer, held []Object, limits Limits, now time.Time) []*dispatcherv1.Assignments {
	p := packer{limits: limits, protocol: l.protocol}
	for i := range held {
		l.hold(&held[i], &p)
	}
	for i := range offers {
		l.offer(&offers[i], &p, now.UnixMilli())
	}
	l.withdraw(&p)
	return p.finish()
}

// Service returns the service of a task that the worker was sent, and when it
// was first sent (see [Sent.Changes]), in Unix milliseconds.
func (l *Sent) Service(task string) (service string, sentAt int64, ok bool) {
	t := l.tasks[task]
	if t == nil {
		return "", 0, false
	}
	return t.service, t.sentAt, true
}

// Waiting returns the keys of offers of which something is still missing.
func (l *Sent) Waiting() []string { return slices.Collect(maps.Keys(l.waiting)) }

// offer brings the worker up to date with one offer.
func (l *Sent) offer(o *Offer, p *packer, at int64) {
	delete(l.waiting, o.Key)
	before := l.tasks[o.ID]
	if o.Task == nil {
		if before != nil {
			delete(l.tasks, o.ID)
			p.withdrawTask(o.ID)
			l.release(before.objects)
		}
		return
	}
	if l.protocol < o.protocol() {
		// The worker cannot receive all that the task needs.
		return
	}
	l.load(o)
	if !o.stops() && o.missing(l.objects) || o.Lags && before == nil && o.Task.ServiceName == "" {
		l.waiting[o.Key] = struct{}{}
		// A worker that has accepted a task has all that it needs for it, and must
		// not be made to drop it. Until then it keeps what it was sent before.
		if before != nil && !refersTo(before.objects, o.Objects) || before == nil && o.Task.KnownState < musterv1.TaskState_ACCEPTED {
			return
		}
	}
	now := &sentTask{service: o.Service, networks: o.Task.Networks, desired: o.Task.DesiredState, assignment: o.Version, complete: o.stops() || !o.missing(l.objects), sentAt: at}
	switch {
	case before != nil:
		now.sentAt, now.assignedAt, now.trace = before.sentAt, before.assignedAt, before.trace
	case p.complete:
	case o.Task.DesiredState == musterv1.TaskState_RUNNING && o.Task.KnownState < musterv1.TaskState_RUNNING:
		now.assignedAt = o.AssignedAt
		fallthrough
	default:
		l.fresh = append(l.fresh, o.AssignedAt)
	}
	if before != nil && before.desired == now.desired && before.assignment == now.assignment && before.complete == now.complete && (o.stops() || l.current(before, o.Objects)) {
		return
	}
	if before == nil && len(o.Task.Trace) > 0 && o.Task.KnownState < musterv1.TaskState_RUNNING {
		now.trace = string(o.Task.Trace)
		l.traced = append(l.traced, o.Task)
	}
	now.objects = l.send(o, p)
	l.tasks[o.ID] = now
	if before != nil {
		l.release(before.objects)
	}
}

// load makes the messages of objects that the worker must be sent.
func (l *Sent) load(o *Offer) {
	if o.stops() {
		return
	}
	for i := range o.Objects {
		object := &o.Objects[i]
		if sent := l.objects[object.Ref]; object.Load != nil && (sent == nil || !sent.current(object)) {
			object.Message = object.Load()
			if object.Message == nil {
				// Its record may have been seen before its data: the newest content is
				// still to be sent.
				l.waiting[o.Key] = struct{}{}
			}
		}
	}
}

// current reports whether the worker has the newest content of an object.
func (s *sentObject) current(o *Object) bool {
	return s.version >= o.Version || s.digest != "" && s.digest == o.Digest
}

// send sends a task together with the objects that the worker does not have, and
// returns the objects that the task now holds.
func (l *Sent) send(o *Offer, p *packer) []Ref {
	refs := make([]Ref, 0, len(o.Objects))
	var needed []*Object
	for i := range o.Objects {
		object := &o.Objects[i]
		sent := l.objects[object.Ref]
		switch {
		case object.Message == nil && sent == nil:
			continue
		case object.Message == nil:
		case object.Members != nil:
			sent = l.bring(object, p)
		case sent == nil:
			sent = &sentObject{version: object.Version, digest: object.Digest}
			l.objects[object.Ref] = sent
			needed = p.need(needed, object)
		case !sent.current(object):
			sent.version, sent.digest = object.Version, object.Digest
			needed = p.need(needed, object)
		}
		sent.users++
		refs = append(refs, object.Ref)
	}
	p.add(o.Task, needed)
	return refs
}

// release drops a task's hold on objects.
func (l *Sent) release(refs []Ref) {
	for _, ref := range refs {
		l.objects[ref].users--
		l.released = append(l.released, ref)
	}
}

// withdraw withdraws the objects that no sent task refers to any longer. That
// comes after all tasks, so that no object is withdrawn and sent again at once.
func (l *Sent) withdraw(p *packer) {
	for _, ref := range l.released {
		// A worker of protocol 0 keeps its specs until the session ends.
		if sent := l.objects[ref]; sent != nil && sent.users == 0 && l.protocol > 0 {
			if sent.members != nil {
				sent.members.Close()
			}
			delete(l.objects, ref)
			p.withdrawObject(ref)
		}
	}
	l.released = l.released[:0]
}

// current reports whether the worker has a task's objects in their newest
// versions, as far as they can be seen.
func (l *Sent) current(t *sentTask, objects []Object) bool {
	for i := range objects {
		object := &objects[i]
		sent := l.objects[object.Ref]
		switch {
		case object.Message == nil:
		case sent == nil || !sent.current(object) || !slices.Contains(t.objects, object.Ref):
			return false
		}
	}
	return refersTo(t.objects, objects)
}

// refersTo reports whether refs names no other objects than the given ones.
func refersTo(refs []Ref, objects []Object) bool {
	for _, ref := range refs {
		if !slices.ContainsFunc(objects, func(o Object) bool { return o.Ref == ref }) {
			return false
		}
	}
	return true
}

// TakeRunning returns how long ago a task was assigned that its worker reports
// as running. It returns false if that was measured already, or means nothing.
func (l *Sent) TakeRunning(id string, now time.Time) (time.Duration, bool) {
	t := l.tasks[id]
	if t == nil || t.assignedAt == 0 {
		return 0, false
	}
	took := now.Sub(time.UnixMilli(t.assignedAt))
	t.assignedAt = 0
	return max(0, took), true
}

// TakeTrace returns the trace of a task that its worker reports as running or
// ended, on the first call. It returns nil if the task is not traced.
func (l *Sent) TakeTrace(id string) []byte {
	t := l.tasks[id]
	if t == nil || t.trace == "" {
		return nil
	}
	trace := []byte(t.trace)
	t.trace = ""
	return trace
}

// TakeTraced returns the traced tasks that were first sent since the last call.
func (l *Sent) TakeTraced() []*dispatcherv1.AssignedTask {
	traced := l.traced
	l.traced = nil
	return traced
}

// TakeNew returns when the tasks were assigned that were first sent since the
// last call, in Unix milliseconds. It leaves out tasks of the complete set.
func (l *Sent) TakeNew() []int64 {
	fresh := l.fresh
	l.fresh = nil
	return fresh
}

// Users returns the keys of the sent tasks that refer to one of the objects.
func (l *Sent) Users(node string, refs []Ref) []string {
	var keys []string
	for id, t := range l.tasks {
		if slices.ContainsFunc(refs, func(ref Ref) bool { return slices.Contains(t.objects, ref) }) {
			keys = append(keys, state.NodeTaskKey(node, t.service, id))
		}
	}
	return keys
}
