package tasks

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/expand"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// phase is what the worker knows about what the executor holds of a task. The
// task's observed state and its goal are kept beside it.
type phase int8

const (
	// phaseUntouched: the executor holds nothing, because no call was made.
	phaseUntouched phase = iota
	// phaseMaybeStarted: this worker made no call, but an earlier worker whose state
	// was lost may have. The executor must be asked before the task counts as
	// stopped.
	phaseMaybeStarted
	// phaseLookUp: the managers know a later state than this worker. The executor
	// must be asked before anything else is done.
	phaseLookUp
	// phaseHeld: the executor holds the task, or may do so.
	phaseHeld
	// phaseOutdated: like phaseHeld, and the executor may not know the newest
	// service name, labels and ports.
	phaseOutdated
	// phaseRemoved: the executor holds nothing any more. The worker must forget the
	// task.
	phaseRemoved
	// phaseForgotten: the store and the manager no longer know the task.
	phaseForgotten
	phases
)

// String returns the name of a phase for logs and tests.
func (p phase) String() string {
	return [...]string{"untouched", "maybe started", "look up", "held", "outdated", "removed", "forgotten"}[p]
}

// record is one version of what the worker knows about a task. Once it is published
// it never changes: the next change makes a new one.
type record struct {
	status lifecycle.Status
	// handle is what the executor wants to be given with each call.
	handle []byte
	// executor is the name of the executor that holds the task. It is empty until one
	// was called.
	executor string
	// place is the task's place on its networks. It is nil for tasks without networks,
	// before Prepare, and once the task was detached.
	place *place
}

// want is what the managers want of a task, as far as they have told this
// worker. Manager.mu guards it.
type want struct {
	// newest is the newest assignment. It is nil for a task that an executor holds
	// and that was never assigned to this worker.
	newest *dispatcherv1.AssignedTask
	// withdrawn is set once the task must be stopped, removed and forgotten.
	withdrawn bool
	// again is an assignment that arrived while the task was being removed.
	again *dispatcherv1.AssignedTask
}

// task is one task of the worker. Its state belongs to the goroutine that drains
// its inbox: see run.
type task struct {
	m      *Manager
	id     string
	digest string
	spec   *musterv1.TaskSpec
	// refs are the objects that the task holds.
	refs []dependencies.Ref
	// owner is the executor of a task that was never assigned to this worker, and
	// that therefore has no spec to tell the executor from.
	owner *executor.Described
	// inherited is set if an earlier life of the worker may have begun the task.
	inherited bool
	// floor is the lowest state that may be reported: the managers know it already.
	floor musterv1.TaskState

	want  want
	inbox inbox

	// published is the newest record that others may see. Only the owner stores it.
	published atomic.Pointer[record]
	// reported is the status to report, if any. Only the owner stores it.
	reported atomic.Pointer[lifecycle.Status]

	// All fields below belong to the owner.

	phase phase
	// prepared is set while a networked task was prepared by this worker and has not been
	// attached yet.
	prepared bool
	// drainUntil is until when the task is left running that must be shut down. It is zero
	// before that. A task that had to be shut down before this worker knew it is not left
	// running: it may have been shut down.
	drainUntil time.Time
	// last is the action that was executed last, and attempts counts its failures in
	// a row.
	last     action
	attempts int32
	// goal is the desired state. It only rises, and is REMOVE once the task is
	// withdrawn.
	goal musterv1.TaskState
	// assigned is the assignment that the owner works with, and storedAssigned the
	// one that is in the store.
	assigned, storedAssigned *dispatcherv1.AssignedTask
	// current is the newest record, and stored the one that is in the store.
	current, stored *record
	// call is the call to the executor that is in flight, if any.
	call *call
	// pauses is nil until something has failed.
	pauses *pauses
	// acceptedAt is when the task was accepted. It is zero if the time until the task
	// runs must not be measured, because the task was blocked in READY.
	acceptedAt time.Time
	// description is what the executor is told about the task. It is made once for
	// each change of what it consists of.
	description *executor.Task
	// context is what templates of the task can use, and invalid says why they cannot be
	// expanded. They belong to the description.
	context expand.Context
	invalid error
	// filesDropped is set once the task's files were removed.
	filesDropped bool
}

// pauses is what a task waits for after failures.
type pauses struct {
	// retryAt is when the last action may be executed again.
	retryAt time.Time
	// backoff is the pause between attempts to stop or to remove the task. It is nil
	// until one has failed.
	backoff *backoff.Backoff
	// saveAt is when to write to the store again after it refused a write.
	saveAt time.Time
	// timer posts a wakeUp at due, if due is not zero.
	timer *time.Timer
	due   time.Time
}

// newTask returns a task without history.
func newTask(m *Manager, id string) *task {
	t := &task{m: m, id: id}
	t.setRecord(m.blank)
	t.stored = m.blank
	return t
}

// setRecord replaces the current record, and publishes it.
func (t *task) setRecord(r *record) {
	t.current = r
	t.published.Store(r)
}

// update changes the current record, or a copy of it if others may see it. What the
// executor said may be of any length: it enters the record within bounds.
func (t *task) update(change func(r *record)) {
	if t.current == t.published.Load() {
		next := *t.current
		t.current = &next
	}
	change(t.current)
	t.current.status.Bound()
}

// state returns the task's observed state.
func (t *task) state() musterv1.TaskState { return t.current.status.State }

// move brings the task to a later state. The change function, if any, is applied
// to the same record.
func (t *task) move(step lifecycle.Step, at time.Time, change func(r *record)) {
	t.update(func(r *record) {
		r.status.Move(step.To, at, step.Message)
		if change != nil {
			change(r)
		}
	})
	if step.To == musterv1.TaskState_ACCEPTED {
		t.acceptedAt = at
	}
}

// action is what to do next about a task.
type action int8

const (
	// actRest: nothing.
	actRest action = iota
	// actAdvance moves the task to the next state without any call.
	actAdvance
	actPrepare
	// actAttach connects a task that was prepared to its networks, and actDetach undoes
	// that once it has ended.
	actAttach
	actStart
	actWait
	actShutdown
	// actAsk finds out whether an executor holds a task that this worker has not
	// begun and that must not run.
	actAsk
	// actLookUp finds out what became of a task that an earlier worker began.
	actLookUp
	// actUpdate tells the executor the task's new service name, labels and ports.
	actUpdate
	actDetach
	actRemove
	actForget
	actions
)

// String returns the name of an action for logs and metrics.
func (a action) String() string {
	return [...]string{
		"rest", "advance", "prepare", "attach", "start", "wait", "shutdown", "ask", "look up", "update", "detach", "remove", "forget",
	}[a]
}

// decide returns what to do next.
func (t *task) decide() (action, lifecycle.Step) {
	state := t.state()
	stop, remove := t.goal >= musterv1.TaskState_SHUTDOWN, t.goal >= musterv1.TaskState_REMOVE
	switch {
	case t.phase == phaseForgotten:
		return actRest, lifecycle.Step{}
	case t.phase == phaseRemoved, t.phase == phaseUntouched && remove:
		return actForget, lifecycle.Step{}
	case t.phase == phaseMaybeStarted && stop:
		return actAsk, lifecycle.Step{}
	case t.phase == phaseLookUp && !stop:
		return actLookUp, lifecycle.Step{}
	case lifecycle.Ended(state) && t.current.place != nil:
		return actDetach, lifecycle.Step{}
	case remove && lifecycle.Ended(state):
		return actRemove, lifecycle.Step{}
	}
	step := lifecycle.Next(state, t.goal)
	switch step.Op {
	case lifecycle.Prepare:
		if t.prepared {
			return actAttach, step
		}
		return actPrepare, step
	case lifecycle.Start:
		return actStart, step
	case lifecycle.Shutdown:
		if t.phase == phaseUntouched {
			return actAdvance, step
		}
		if t.draining() {
			return actWait, lifecycle.Next(state, musterv1.TaskState_RUNNING)
		}
		return actShutdown, step
	}
	// Prepare and Start describe the task themselves, so an update never interrupts
	// them.
	if t.phase == phaseOutdated && !lifecycle.Ended(state) {
		return actUpdate, lifecycle.Step{}
	}
	switch step.Op {
	case lifecycle.Advance:
		return actAdvance, step
	case lifecycle.Wait:
		return actWait, step
	}
	return actRest, step
}

// assignmentChanged is the event of a newer assignment.
type assignmentChanged struct {
	msg *dispatcherv1.AssignedTask
	// stored says whether the assignment is in the store.
	stored bool
}

func (e assignmentChanged) apply(t *task) {
	t.goal = max(t.goal, goalOf(e.msg))
	if !sameSurroundings(t.assigned, e.msg) {
		t.description = nil
		if t.phase == phaseHeld && !lifecycle.Ended(t.state()) {
			t.phase = phaseOutdated
		}
	}
	// A write of the older assignment may have come after the newer one.
	if e.stored && t.assigned == t.storedAssigned {
		t.storedAssigned = e.msg
	}
	t.assigned = e.msg
}

// goalOf returns the goal that an assignment sets. REMOVE as a desired state only
// means that the task stops: the worker removes it when it is withdrawn.
func goalOf(msg *dispatcherv1.AssignedTask) musterv1.TaskState {
	return min(msg.GetDesiredState(), musterv1.TaskState_SHUTDOWN)
}

// withdrawal is the event that the task is no longer assigned.
type withdrawal struct{}

func (withdrawal) apply(t *task) { t.goal = musterv1.TaskState_REMOVE }

// wakeUp is the event that it may be time to do something.
type wakeUp struct{}

func (wakeUp) apply(t *task) {
	if t.pauses != nil {
		t.pauses.due = time.Time{}
	}
}

// merged returns a newer assignment of a task as it must be stored, or nil if it
// says nothing new. A desired state never falls.
func (w *want) merged(msg *dispatcherv1.AssignedTask) *dispatcherv1.AssignedTask {
	desired := w.newest.GetDesiredState()
	if msg.GetDesiredState() <= desired && sameSurroundings(w.newest, msg) {
		return nil
	}
	if msg.GetDesiredState() < desired {
		msg = proto.CloneOf(msg)
		msg.DesiredState = desired
	}
	return msg
}

// sameSurroundings reports whether two assignments of a task tell an executor the
// same.
func sameSurroundings(a, b *dispatcherv1.AssignedTask) bool {
	return a.GetServiceName() == b.GetServiceName() &&
		maps.Equal(a.GetServiceLabels(), b.GetServiceLabels()) &&
		slices.EqualFunc(a.GetPorts(), b.GetPorts(), func(x, y *musterv1.PortConfig) bool { return proto.Equal(x, y) })
}

// describe returns what the executor is told about the task.
func (t *task) describe() *executor.Task {
	if t.description == nil {
		service := t.assigned.GetServiceName()
		if service == "" {
			service = t.assigned.GetServiceId()
		}
		slot := t.m.cfg.NodeID
		if t.assigned.GetSlot() != 0 {
			slot = strconv.FormatUint(t.assigned.GetSlot(), 10)
		}
		t.description = &executor.Task{
			ID:            t.id,
			Name:          service + "." + slot + "." + t.id,
			ServiceID:     t.assigned.GetServiceId(),
			ServiceName:   t.assigned.GetServiceName(),
			Slot:          t.assigned.GetSlot(),
			NodeID:        t.m.cfg.NodeID,
			ServiceLabels: t.assigned.GetServiceLabels(),
			Spec:          t.spec,
			Networked:     t.networked(),
		}
		// The ports of a networked task are its network plugin's business.
		if !t.networked() {
			t.description.Ports = t.assigned.GetPorts()
		}
		t.context = t.expandContext(t.description, slot)
		if spec, err := expand.Spec(t.spec, t.context); err == nil {
			t.description.Spec, t.invalid = spec, nil
		} else {
			t.invalid = specError(err)
		}
		t.describeFiles(t.description)
	}
	return t.description
}

// executor returns the executor that holds the task or, if there is none yet, one of
// the task's kind.
func (t *task) executor(ctx context.Context, holder string) (*executor.Described, error) {
	if t.owner != nil {
		return t.owner, nil
	}
	kind := executor.KindOf(t.spec)
	if holder == "" && t.inherited {
		var err error
		if holder, err = t.m.holder(ctx, kind, t.id); err != nil {
			return nil, err
		}
	}
	return t.m.cfg.Executors.For(ctx, kind, holder)
}
