package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Begin starts a session, in which a complete set of assignments follows. The
// first call lets restored tasks continue.
func (m *Manager) Begin() {
	m.admit.Do(func() { close(m.admitted) })
	m.assigning <- struct{}{}
	defer func() { <-m.assigning }()
	m.incoming = nil
	m.dropSpecs()
}

// Assign takes in a message with assignments. It returns once everything in it is
// stored, or the store has refused it. The tasks change in the background.
func (m *Manager) Assign(ctx context.Context, msg *dispatcherv1.Assignments) error {
	select {
	case <-m.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case m.assigning <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.assigning }()
	assigned, removed, changed := m.receive(msg)
	if err := m.add(assigned); err != nil {
		return err
	}
	m.filesChanged(changed)
	if msg.GetComplete() {
		if m.incoming == nil {
			m.incoming = map[string]bool{}
		}
		for _, t := range assigned {
			m.incoming[t.GetId()] = true
		}
		if !msg.GetLast() {
			return nil
		}
		removed = m.missing(m.incoming)
		m.incoming = nil
		for _, id := range removed {
			m.log.Info("task is missing from the complete set of assignments; removing it", zap.String("task", id))
		}
	}
	m.withdraw(removed)
	for _, ref := range msg.GetWithdrawn() {
		m.objects.Withdraw(ref)
	}
	if msg.GetComplete() {
		m.objects.Complete()
		m.mu.Lock()
		m.synced = true
		m.mu.Unlock()
		m.Sweep()
	}
	return nil
}

// receive stores the objects of a message, and returns the tasks that it assigns
// and withdraws, and the secrets and configs that have other data. The message may be of
// any protocol.
func (m *Manager) receive(msg *dispatcherv1.Assignments) (assigned []*dispatcherv1.AssignedTask, withdrawn []string, changed []dependencies.Ref) {
	for _, spec := range msg.GetSpecs() {
		m.objects.PutSpec(spec.GetDigest(), spec.GetSpec())
	}
	assigned, withdrawn = msg.GetTasks(), msg.GetRemoved()
	for _, object := range msg.GetObjects() {
		if t := object.GetTask(); t != nil {
			if assigned == nil {
				assigned = make([]*dispatcherv1.AssignedTask, 0, len(msg.GetObjects()))
			}
			assigned = append(assigned, t)
		} else if ref, ok := m.objects.Put(object); ok {
			changed = append(changed, ref)
		}
	}
	for _, ref := range msg.GetWithdrawn() {
		if id := ref.GetTask(); id != "" {
			withdrawn = append(withdrawn, id)
		}
	}
	return assigned, withdrawn, changed
}

// Abandon stops and removes all tasks because this worker is no longer the node.
func (m *Manager) Abandon(ctx context.Context, why string) error {
	if len(m.IDs()) == 0 {
		return nil
	}
	m.log.Error("stopping and removing all tasks", zap.String("reason", why))
	m.Begin()
	return m.Assign(ctx, &dispatcherv1.Assignments{Complete: true, Last: true})
}

// missing returns the tasks that a complete set does not name.
func (m *Manager) missing(set map[string]bool) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id := range m.tasks {
		if !set[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// sorted is what a message assigns, by what must be done about it.
type sorted struct {
	added   []*task
	changed map[*task]*dispatcherv1.AssignedTask
	// files are tasks that now hold secrets or configs that they lacked.
	files []*task
	// changes is what must be written to the store.
	changes []taskdb.Change
}

// add takes in new and changed tasks. The caller holds m.assigning.
func (m *Manager) add(assigned []*dispatcherv1.AssignedTask) error {
	began := time.Now()
	all, err := m.sort(assigned)
	if err != nil {
		return err
	}
	// Specs go to the disk with the first tasks that need them.
	needed := map[string]*musterv1.TaskSpec{}
	for _, t := range all.added {
		needed[t.digest] = t.spec
	}
	failed := m.store(needed, all.changes...)
	if failed != nil {
		m.log.Error("failed to persist assignments; retrying", zap.Int("tasks", len(all.changes)), zap.Error(failed))
	}
	m.mu.Lock()
	for _, t := range all.added {
		m.tasks[t.id] = t
	}
	for t, msg := range all.changed {
		t.want.newest = msg
	}
	m.mu.Unlock()
	for _, t := range all.added {
		if failed == nil {
			t.storedAssigned = t.assigned
		}
		t.trace("accept task", began).End(nil)
		t.post(wakeUp{})
	}
	for t, msg := range all.changed {
		t.post(assignmentChanged{msg, failed == nil})
	}
	for _, t := range all.files {
		t.post(filesChanged{})
	}
	return nil
}

// sort finds out which assigned tasks are new and which have changed.
func (m *Manager) sort(assigned []*dispatcherv1.AssignedTask) (all sorted, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.Store != nil {
		all.changes = make([]taskdb.Change, 0, len(assigned))
	}
	for _, msg := range assigned {
		t, known := m.tasks[msg.GetId()]
		switch {
		case !known:
			t, err := m.assigned(msg)
			if err != nil {
				for _, t := range all.added {
					m.objects.Release(t.refs)
				}
				return sorted{}, err
			}
			all.added = append(all.added, t)
		case t.want.withdrawn:
			// It begins again once it has been removed.
			t.want.again = msg
			continue
		case t.digest != string(msg.GetSpecDigest()):
			m.log.Error("task was assigned with another spec, which is ignored: the spec of a task never changes", zap.String("task", t.id))
			continue
		default:
			if refs, err := dependencies.RefsOf(msg); err == nil && m.holdFiles(t, refs) {
				all.files = append(all.files, t)
			}
			if msg = t.want.merged(msg); msg == nil {
				continue
			}
			if all.changed == nil {
				all.changed = map[*task]*dispatcherv1.AssignedTask{}
			}
			all.changed[t] = msg
		}
		if m.cfg.Store != nil {
			all.changes = append(all.changes, taskdb.Change{ID: msg.GetId(), Assigned: msg})
		}
	}
	return all, nil
}

// withdraw begins to stop and remove tasks. If that cannot be stored, a worker that
// starts again learns it from the next complete set. The caller holds m.assigning.
func (m *Manager) withdraw(ids []string) {
	if len(ids) == 0 {
		return
	}
	m.mu.Lock()
	tasks := make([]*task, 0, len(ids))
	changes := make([]taskdb.Change, 0, len(ids))
	for _, id := range ids {
		t := m.tasks[id]
		if t == nil {
			continue
		}
		t.want.again = nil
		// A task that is withdrawn already may be forgotten at any moment. Nothing may
		// be written about it after that.
		if !t.want.withdrawn {
			tasks = append(tasks, t)
			changes = append(changes, taskdb.Change{ID: id, Withdrawn: true})
		}
	}
	m.mu.Unlock()
	if err := m.store(nil, changes...); err != nil {
		m.log.Error("failed to persist task withdrawal", zap.Int("tasks", len(changes)), zap.Error(err))
	}
	m.mu.Lock()
	for _, t := range tasks {
		t.want.withdrawn = true
	}
	m.mu.Unlock()
	for _, t := range tasks {
		t.post(withdrawal{})
	}
}

// assigned makes a task that this worker did not know, and holds what the task
// refers to. The caller holds m.mu.
func (m *Manager) assigned(msg *dispatcherv1.AssignedTask) (*task, error) {
	refs, err := dependencies.RefsOf(msg)
	if err != nil {
		return nil, err
	}
	if goalOf(msg) >= musterv1.TaskState_SHUTDOWN {
		// The task can be stopped without objects, which may be gone for good: this
		// worker may have known them before it was started again.
		refs, _ = m.holdPresent(refs)
	} else if err := m.objects.Hold(refs); err != nil {
		return nil, fmt.Errorf("task %s: %w", msg.GetId(), err)
	}
	t := m.wanted(msg, refs)
	if !m.synced && t.phase == phaseUntouched {
		t.phase, t.inherited = phaseMaybeStarted, true
	}
	return t, nil
}

// holdPresent holds those of the objects that there are, and returns them. The error names
// the others.
func (m *Manager) holdPresent(refs []dependencies.Ref) (held []dependencies.Ref, err error) {
	for _, ref := range refs {
		if missing := m.objects.Hold([]dependencies.Ref{ref}); missing != nil {
			err = errors.Join(err, missing)
			continue
		}
		held = append(held, ref)
	}
	return held, err
}

// wanted makes a task of an assignment. If the managers know more of the task
// than its assignment, an earlier worker with this id ran it and its state was
// lost.
func (m *Manager) wanted(msg *dispatcherv1.AssignedTask, refs []dependencies.Ref) *task {
	t := newTask(m, msg.GetId())
	t.digest, t.spec, t.refs = string(msg.GetSpecDigest()), m.objects.Spec(msg.GetSpecDigest()), refs
	t.want.newest, t.assigned, t.goal = msg, msg, goalOf(msg)
	if t.goal >= musterv1.TaskState_SHUTDOWN {
		t.drainUntil = time.Now()
	}
	if known := msg.GetKnownState(); known > musterv1.TaskState_ACCEPTED {
		t.floor, t.inherited = known, true
		t.setRecord(&record{status: lifecycle.Status{State: known}})
		// Nothing that is known already has to be stored or reported.
		t.stored = t.current
		t.phase = phaseLookUp
		if lifecycle.Ended(known) {
			t.phase = phaseHeld
		}
	}
	return t
}

// restored makes a task of what was stored of it. Of the objects that it refers to
// only its spec and networks are stored.
func (m *Manager) restored(id string, stored *taskdb.Record) *task {
	digest := stored.Assigned.GetSpecDigest()
	refs, err := m.holdPresent(append(dependencies.NetworkRefs(stored.Assigned), dependencies.SpecRef(digest)))
	if err != nil {
		m.log.Error("failed to restore what a task refers to", zap.String("task", id), zap.Error(err))
	}
	t := m.wanted(stored.Assigned, refs)
	t.storedAssigned, t.inherited = t.assigned, true
	if stored.Withdrawn {
		t.want.withdrawn, t.goal, t.drainUntil = true, musterv1.TaskState_REMOVE, time.Now()
	}
	now := &record{status: t.current.status, handle: stored.Handle, executor: stored.Executor}
	switch status := stored.Status; {
	case status != nil:
		now.status = lifecycle.FromReport(status)
		t.reported.Store(&now.status)
		t.phase = restoredPhase(now.status.State)
	case t.phase == phaseUntouched:
		t.phase = phaseMaybeStarted
	}
	if times := now.status.Times; len(times) > 0 && times[0].State == musterv1.TaskState_ACCEPTED {
		t.acceptedAt = times[0].At
	}
	t.setRecord(now)
	t.stored = now
	t.restorePlace(stored.Place)
	return t
}

// restoredPhase returns the phase of a task whose status was stored. The executor
// may not have been told of the newest service name, labels and ports: they are
// stored before it is.
func restoredPhase(state musterv1.TaskState) phase {
	switch {
	case lifecycle.Ended(state):
		return phaseHeld
	case lifecycle.Touched(state):
		return phaseOutdated
	default:
		return phaseMaybeStarted
	}
}
