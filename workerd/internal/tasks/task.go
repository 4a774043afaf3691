package tasks

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// task is one task of the worker.
type task struct {
	m      *Manager
	id     string
	digest string
	spec   *musterv1.TaskSpec
	// refs are the objects that the task holds.
	refs []dependencies.Ref
	// orphan marks what an executor holds though it was never assigned here.
	// It is only removed, and nothing is kept or reported of it.
	orphan bool
	// owner is the executor of an orphan, which has no spec that tells.
	owner *executor.Described

	mu       sync.Mutex
	assigned *dispatcherv1.AssignedTask
	// desired only rises.
	desired musterv1.TaskState
	// withdrawn: stop it, remove it, forget it.
	withdrawn bool
	// again is an assignment that came while the task was being removed.
	again *dispatcherv1.AssignedTask
	// adopt: somebody knows more of this task than this worker; ask the
	// executor before anything is done.
	adopt bool
	// unsure: it was in the first complete set, so an earlier worker may have begun
	// it, whose memory is lost, and nobody have heard of that. It must not be taken for
	// stopped before the executor was asked.
	unsure bool
	// update: its surroundings changed since the executor was told.
	update bool
	// removed: the executor holds nothing of it any more.
	removed bool

	status lifecycle.Status
	// dirty: status or handle are not kept yet. unkept: nor is the assignment.
	dirty, unkept bool
	handle        []byte
	// kept is the newest status that may be reported.
	kept lifecycle.Status
	// saveAt is when to try again after the store refused a write, and waits says
	// so of a task that cannot go on before.
	saveAt time.Time
	waits  *lifecycle.Status
	// floor is the state below which nothing is reported: the managers have
	// heard more.
	floor musterv1.TaskState

	// parked: it was ready before it might start.
	parked bool

	// active: a goroutine drives the task.
	active bool
	// doing is what it is about, and cancel ends that early.
	doing  action
	cancel context.CancelFunc
	// attempts counts the failures of doing in a row.
	attempts int
	// told is what the executor is told of the task, made once.
	told *executorv1.Task
	// progressing: the executor has reported what the open call is waiting for.
	progressing bool

	// amending is held while the status is changed and kept beside a call. It is
	// taken before mu.
	amending sync.Mutex
}

// action is what is to be done next about a task.
type action int

// What there is to do beyond the steps of the life cycle.
const (
	actRest action = iota
	actAdvance
	actPrepare
	actStart
	actWait
	actShutdown
	actAdopt
	actUpdate
	actRemove
	actForget
	actions
)

// String names an action for logs and metrics.
func (a action) String() string {
	return [...]string{"rest", "advance", "prepare", "start", "wait", "shutdown", "adopt", "update", "remove", "forget"}[a]
}

// decide says what is to be done next. t.mu is held.
func (t *task) decide() (action, lifecycle.Step) {
	if t.withdrawn {
		switch {
		case t.removed, !t.orphan && !t.adopt && !t.unsure && !lifecycle.Touched(t.status.State):
			return actForget, lifecycle.Step{}
		case lifecycle.Ended(t.status.State):
			return actRemove, lifecycle.Step{}
		}
		return actShutdown, lifecycle.Next(t.status.State, musterv1.TaskState_REMOVE)
	}
	if t.adopt && t.desired < musterv1.TaskState_SHUTDOWN {
		return actAdopt, lifecycle.Step{}
	}
	step := lifecycle.Next(t.status.State, t.desired)
	if t.update && step.Op != lifecycle.Shutdown && lifecycle.Touched(t.status.State) {
		return actUpdate, lifecycle.Step{}
	}
	switch step.Op {
	case lifecycle.Advance:
		return actAdvance, step
	case lifecycle.Prepare:
		return actPrepare, step
	case lifecycle.Start:
		return actStart, step
	case lifecycle.Wait:
		return actWait, step
	case lifecycle.Shutdown:
		return actShutdown, step
	}
	return actRest, step
}

// kick makes sure that a goroutine drives the task, if there is anything to do.
func (t *task) kick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active {
		return
	}
	if next, _ := t.decide(); next == actRest && !t.owes() {
		return
	}
	t.active = t.m.spawn(t.drive)
}

// reconsider cancels what is being done if something else is to be done now.
// t.mu is held.
func (t *task) reconsider() {
	if t.cancel == nil {
		return
	}
	if next, _ := t.decide(); next != t.doing {
		t.cancel()
	}
}

// change takes in a newer assignment, and whether it is yet to be kept.
func (t *task) change(msg *dispatcherv1.AssignedTask, unkept bool) {
	t.mu.Lock()
	t.unkept = t.unkept || unkept
	t.desired = max(t.desired, msg.GetDesiredState())
	if !sameSurroundings(t.assigned, msg) {
		t.told = nil
		t.update = lifecycle.Touched(t.status.State) && !lifecycle.Ended(t.status.State)
	}
	t.assigned = msg
	t.reconsider()
	t.mu.Unlock()
	t.kick()
}

// withdraw begins to stop and remove the task.
func (t *task) withdraw() {
	t.mu.Lock()
	t.withdrawn = true
	t.reconsider()
	t.mu.Unlock()
	t.kick()
}

// leaving says whether the task is withdrawn. If it was assigned again, it is not
// any more.
func (t *task) leaving() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.again = nil
	return t.withdrawn
}

// takeAgain keeps an assignment of a task that is just being removed for later.
// It says whether it did.
func (t *task) takeAgain(msg *dispatcherv1.AssignedTask) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.withdrawn {
		return false
	}
	t.again = msg
	return true
}

// merged returns an assignment as it is to be kept, or nil if it says nothing
// new. A desired state never falls.
func (t *task) merged(msg *dispatcherv1.AssignedTask) *dispatcherv1.AssignedTask {
	t.mu.Lock()
	defer t.mu.Unlock()
	if msg.GetDesiredState() <= t.desired && sameSurroundings(t.assigned, msg) {
		return nil
	}
	if msg.GetDesiredState() < t.desired {
		msg = proto.CloneOf(msg)
		msg.DesiredState = t.desired
	}
	return msg
}

// sameSurroundings says whether two assignments of a task tell an executor the
// same.
func sameSurroundings(a, b *dispatcherv1.AssignedTask) bool {
	return a.GetServiceName() == b.GetServiceName() &&
		maps.Equal(a.GetServiceLabels(), b.GetServiceLabels()) &&
		slices.EqualFunc(a.GetPorts(), b.GetPorts(), func(x, y *musterv1.PortConfig) bool { return proto.Equal(x, y) })
}

// drive does what is to be done until there is nothing more.
func (t *task) drive() {
	// What failed, and how long to wait before it is tried again.
	var failed action
	var pause time.Duration
	for {
		t.mu.Lock()
		next, step := t.decide()
		for next == actAdvance {
			t.status.Move(step.To, time.Now(), step.Message)
			t.dirty = true
			next, step = t.decide()
		}
		save := t.owes()
		switch {
		case t.m.run.Err() != nil, next == actRest && !save:
			t.active = false
			t.parked = t.parked || t.status.State == musterv1.TaskState_READY
			t.mu.Unlock()
			return
		case save && !time.Now().Before(t.saveAt):
			t.save(next.writtenFirst())
			continue
		case save && (next == actRest || next.writtenFirst()):
			t.rest(next, time.Until(t.saveAt))
			continue
		case pause > 0 && next == failed:
			t.rest(next, pause)
			pause = 0
			continue
		}
		if next != t.doing {
			t.attempts = 0
		}
		ctx, cancel := context.WithCancel(t.m.run)
		if save && next == actWait {
			// What is owed to the store is not to wait for the end of the task.
			ctx, cancel = context.WithDeadline(t.m.run, t.saveAt)
		}
		t.doing, t.cancel = next, cancel
		started := time.Now()
		span := t.traceCall(next, started)
		t.mu.Unlock()

		var gone bool
		pause, gone = t.perform(ctx, next, step)
		failed = next
		t.m.metrics.done(next, time.Since(started))

		t.mu.Lock()
		t.cancel = nil
		message := t.status.Error
		t.mu.Unlock()
		cancel()
		span.End(traceError(message))
		if gone {
			return
		}
	}
}

// rest waits before next is tried again. It ends early when something else is
// to be done. t.mu is held, and is released.
func (t *task) rest(next action, pause time.Duration) {
	ctx, cancel := context.WithTimeout(t.m.run, pause)
	defer cancel()
	t.doing, t.cancel = next, cancel
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.cancel = nil
	t.mu.Unlock()
}

// describe returns what the executor is told of the task.
func (t *task) describe() *executorv1.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.told == nil {
		service := t.assigned.GetServiceName()
		if service == "" {
			service = t.assigned.GetServiceId()
		}
		slot := t.m.cfg.NodeID
		if t.assigned.GetSlot() != 0 {
			slot = strconv.FormatUint(t.assigned.GetSlot(), 10)
		}
		t.told = &executorv1.Task{
			Id:            t.id,
			Name:          service + "." + slot + "." + t.id,
			ServiceId:     t.assigned.GetServiceId(),
			ServiceName:   t.assigned.GetServiceName(),
			Slot:          t.assigned.GetSlot(),
			NodeId:        t.m.cfg.NodeID,
			ServiceLabels: t.assigned.GetServiceLabels(),
			Spec:          t.spec,
			Ports:         t.assigned.GetPorts(),
		}
	}
	return t.told
}
