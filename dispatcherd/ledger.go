package dispatcherd

import (
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// offer is one assignment as a snapshot shows it, joined with what it refers
// to.
type offer struct {
	// key is the assignment's: "<node>/<service>/<task>".
	key string
	// service and id are its second and third segment.
	service, id string
	// version is the assignment's.
	version uint64
	// assignedAt is when the node was chosen, in milliseconds.
	assignedAt int64
	// task is nil if the node is not to run it: the assignment or the task's
	// record is gone.
	task *dispatcherv1.AssignedTask
	// spec is nil if it is not to be seen.
	spec *musterv1.TaskSpec
	// lags says that something which the assignment refers to is not to be seen,
	// and may only be late: tables arrive each for itself.
	lags bool
}

// told is what a worker was told of a task.
type told struct {
	service string
	desired musterv1.TaskState
	digest  string
	// assignment is the version of the assignment, which holds the ports.
	assignment uint64
	// spec says that the spec was told too, or is not needed to stop the task.
	spec bool
	// sentAt is when the task was first told in this session, in milliseconds; 0
	// if that was in the complete set, where it may not be news.
	sentAt int64
	// assignedAt is the assignment's, until it is known how long the task took to
	// run, or that this says nothing of who got it there: 0 then.
	assignedAt int64
	// trace is that of the task until it is known that it runs or has ended.
	trace string
}

// ledger is what one worker was told in one session. It turns offers into the
// messages that bring the worker from there to here, and notes them as told.
type ledger struct {
	tasks map[string]told
	specs map[string]struct{}
	// waiting holds the keys of offers of which something is yet to be seen.
	waiting map[string]struct{}
	// news holds when the tasks were assigned that were told for the first time
	// since it was last taken; those of the complete set are not among them.
	news []int64
	// traced holds the tasks that were told for the first time since it was last
	// taken and that are traced.
	traced []*dispatcherv1.AssignedTask
}

func newLedger() *ledger {
	return &ledger{tasks: map[string]told{}, specs: map[string]struct{}{}, waiting: map[string]struct{}{}}
}

// complete begins the ledger with all of a node's offers, and returns the
// complete set in messages.
func (l *ledger) complete(offers []offer, size packing) []*dispatcherv1.Assignments {
	p := packer{packing: size, complete: true}
	for _, o := range offers {
		l.offer(o, &p)
	}
	return p.finish()
}

// changes returns the messages for offers that have or may have changed.
func (l *ledger) changes(offers []offer, size packing, now time.Time) []*dispatcherv1.Assignments {
	p := packer{packing: size, at: now.UnixMilli()}
	for _, o := range offers {
		l.offer(o, &p)
	}
	return p.finish()
}

func (l *ledger) offer(o offer, p *packer) {
	delete(l.waiting, o.key)
	before, known := l.tasks[o.id]
	if o.task == nil {
		if known {
			delete(l.tasks, o.id)
			p.remove(o.id)
		}
		return
	}
	digest := string(o.task.SpecDigest)
	_, specKnown := l.specs[digest]
	if o.lags && (!specKnown && o.spec == nil || !known && o.task.ServiceName == "") {
		l.waiting[o.key] = struct{}{}
		// A worker that has accepted a task has all that it needs for it, and must
		// not be made to drop it. What it was told before stands meanwhile.
		if known && before.digest != digest || !known && o.task.KnownState < musterv1.TaskState_ACCEPTED {
			return
		}
	}
	now := told{
		service: o.service, desired: o.task.DesiredState, digest: digest, assignment: o.version,
		spec: specKnown || o.spec != nil || o.task.DesiredState > musterv1.TaskState_COMPLETE, sentAt: p.at,
	}
	switch {
	case known:
		now.sentAt, now.assignedAt, now.trace = before.sentAt, before.assignedAt, before.trace
	case p.complete:
	case o.task.DesiredState == musterv1.TaskState_RUNNING && o.task.KnownState < musterv1.TaskState_RUNNING:
		now.assignedAt = o.assignedAt
		fallthrough
	default:
		l.news = append(l.news, o.assignedAt)
	}
	if known && before == now {
		return
	}
	if !known && len(o.task.Trace) > 0 && o.task.KnownState < musterv1.TaskState_RUNNING {
		now.trace = string(o.task.Trace)
		l.traced = append(l.traced, o.task)
	}
	var spec *dispatcherv1.AssignedSpec
	if !specKnown && o.spec != nil {
		l.specs[digest] = struct{}{}
		spec = &dispatcherv1.AssignedSpec{Digest: o.task.SpecDigest, Spec: o.spec}
	}
	l.tasks[o.id] = now
	p.add(o.task, spec)
}

// runs returns how long ago a task was assigned that a worker says it runs, the
// first time that it says so; false if that is to be counted no more.
func (l *ledger) runs(id string, now time.Time) (time.Duration, bool) {
	t := l.tasks[id]
	if t.assignedAt == 0 {
		return 0, false
	}
	took := now.Sub(time.UnixMilli(t.assignedAt))
	t.assignedAt = 0
	l.tasks[id] = t
	return max(0, took), true
}

// takeTrace returns the trace of a task of which a worker says that it runs or
// has ended, the first time that it says so; nil if it is not traced.
func (l *ledger) takeTrace(id string) []byte {
	t := l.tasks[id]
	if t.trace == "" {
		return nil
	}
	trace := []byte(t.trace)
	t.trace = ""
	l.tasks[id] = t
	return trace
}

// takeTraced returns the traced tasks that were told for the first time since the
// last call.
func (l *ledger) takeTraced() []*dispatcherv1.AssignedTask {
	traced := l.traced
	l.traced = nil
	return traced
}

// packing bounds one message.
type packing struct{ tasks, bytes int }

// packer fills messages up to their bound.
type packer struct {
	packing
	complete bool
	// at is when changes are told, in milliseconds; 0 for a complete set.
	at       int64
	messages []*dispatcherv1.Assignments
	now      *dispatcherv1.Assignments
	count    int
	size     int
}

// add puts a task into the message at hand, with the spec it is the first to
// refer to, if any.
func (p *packer) add(task *dispatcherv1.AssignedTask, spec *dispatcherv1.AssignedSpec) {
	size := proto.Size(task)
	if spec != nil {
		size += proto.Size(spec)
	}
	m := p.room(size)
	m.Tasks = append(m.Tasks, task)
	if spec != nil {
		m.Specs = append(m.Specs, spec)
	}
}

func (p *packer) remove(id string) {
	m := p.room(len(id) + 2)
	m.Removed = append(m.Removed, id)
}

// room returns a message with room for so many bytes more.
func (p *packer) room(size int) *dispatcherv1.Assignments {
	if p.now != nil && (p.count >= p.tasks || p.size+size > p.bytes) {
		p.now = nil
	}
	if p.now == nil {
		p.now = &dispatcherv1.Assignments{Complete: p.complete}
		p.messages = append(p.messages, p.now)
		p.count, p.size = 0, 0
	}
	p.count++
	p.size += size
	return p.now
}

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
