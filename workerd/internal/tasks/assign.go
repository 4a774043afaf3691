package tasks

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Begin is called at the start of a session: a complete set follows. With the
// first, the tasks that were restored are gone on with.
func (m *Manager) Begin() {
	m.admit.Do(func() { close(m.admitted) })
	m.assigning.Lock()
	defer m.assigning.Unlock()
	m.incoming = nil
	m.dropSpecs()
}

// Assign takes in an assignment. It returns when everything in it is kept, or the
// store has refused it; what is to be done about it is done meanwhile and
// afterwards.
func (m *Manager) Assign(ctx context.Context, msg *dispatcherv1.Assignments) error {
	select {
	case <-m.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	m.assigning.Lock()
	defer m.assigning.Unlock()
	assigned, removed := m.receive(msg)
	if err := m.add(assigned); err != nil {
		return err
	}
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
			m.log.Info("task is not assigned any more, as a new session shows: it is stopped and removed", zap.String("task", id))
		}
	}
	m.withdraw(removed)
	for _, ref := range msg.GetWithdrawn() {
		if object, ok := dependencies.RefOf(ref); ok {
			m.objects.Withdraw(object)
		}
	}
	if msg.GetComplete() {
		m.mu.Lock()
		m.synced = true
		m.mu.Unlock()
		m.Sweep()
	}
	return nil
}

// receive puts the objects of a message where tasks find them, and returns the
// tasks that it assigns and withdraws. The message may be of either protocol.
func (m *Manager) receive(msg *dispatcherv1.Assignments) (assigned []*dispatcherv1.AssignedTask, withdrawn []string) {
	for _, spec := range msg.GetSpecs() {
		m.objects.PutSpec(spec.GetDigest(), spec.GetSpec())
	}
	assigned, withdrawn = msg.GetTasks(), msg.GetRemoved()
	for _, object := range msg.GetObjects() {
		if t := object.GetTask(); t != nil {
			assigned = append(assigned, t)
		} else {
			m.objects.Put(object)
		}
	}
	for _, ref := range msg.GetWithdrawn() {
		if id := ref.GetTask(); id != "" {
			withdrawn = append(withdrawn, id)
		}
	}
	return assigned, withdrawn
}

// Abandon stops and removes all tasks: this worker is not the node any more.
func (m *Manager) Abandon(ctx context.Context, why string) error {
	if len(m.IDs()) == 0 {
		return nil
	}
	m.log.Error("all tasks are stopped and removed", zap.String("reason", why))
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

// add takes in new and changed tasks.
func (m *Manager) add(assigned []*dispatcherv1.AssignedTask) error {
	began := time.Now()
	fresh, changed, changes, err := m.sort(assigned)
	if err != nil {
		return err
	}
	// Specs go to the disk with the first tasks that need them.
	needed := map[string]*musterv1.TaskSpec{}
	for _, t := range fresh {
		needed[t.digest] = t.spec
	}
	unkept := m.keep(needed, changes...)
	if unkept != nil {
		m.log.Error("assigned tasks are not kept yet", zap.Int("tasks", len(changes)), zap.Error(unkept))
	}
	m.mu.Lock()
	for _, t := range fresh {
		t.unkept = unkept != nil
		m.tasks[t.id] = t
	}
	m.mu.Unlock()
	for _, t := range fresh {
		t.trace("accept task", began).End(nil)
		t.kick()
	}
	for t, msg := range changed {
		t.change(msg, unkept != nil)
	}
	return nil
}

// sort finds out which assigned tasks are new and which have changed.
func (m *Manager) sort(assigned []*dispatcherv1.AssignedTask) (
	fresh []*task, changed map[*task]*dispatcherv1.AssignedTask, changes []taskdb.Change, err error,
) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.Store != nil {
		changes = make([]taskdb.Change, 0, len(assigned))
	}
	for _, msg := range assigned {
		t, known := m.tasks[msg.GetId()]
		if !known {
			t, err := m.assigned(msg)
			if err != nil {
				for _, t := range fresh {
					m.objects.Release(t.refs)
				}
				return nil, nil, nil, err
			}
			fresh = append(fresh, t)
		} else {
			if t.digest != string(msg.GetSpecDigest()) {
				// A task's spec is part of what the task is.
				m.log.Error("task was assigned with another spec, which is ignored", zap.String("task", t.id))
				continue
			}
			if t.takeAgain(msg) {
				continue
			}
			if msg = t.merged(msg); msg == nil {
				continue
			}
			if changed == nil {
				changed = map[*task]*dispatcherv1.AssignedTask{}
			}
			changed[t] = msg
		}
		if m.cfg.Store != nil {
			changes = append(changes, taskdb.Change{ID: msg.GetId(), Assigned: msg})
		}
	}
	return fresh, changed, changes, nil
}

// withdraw begins to stop and remove tasks. If that is not kept, a worker that
// starts again learns it anew.
func (m *Manager) withdraw(ids []string) {
	if len(ids) == 0 {
		return
	}
	m.mu.Lock()
	tasks := make([]*task, 0, len(ids))
	changes := make([]taskdb.Change, 0, len(ids))
	for _, id := range ids {
		// One that is withdrawn already may be forgotten at any moment, and must not be
		// written of after that.
		if t := m.tasks[id]; t != nil && !t.leaving() {
			tasks = append(tasks, t)
			if !t.orphan {
				changes = append(changes, taskdb.Change{ID: id, Withdrawn: true})
			}
		}
	}
	m.mu.Unlock()
	if err := m.keep(nil, changes...); err != nil {
		m.log.Error("it is not kept that tasks are withdrawn", zap.Int("tasks", len(changes)), zap.Error(err))
	}
	for _, t := range tasks {
		t.withdraw()
	}
}

// assigned makes a task that this worker did not know, and holds what the task
// refers to. m.mu is held.
func (m *Manager) assigned(msg *dispatcherv1.AssignedTask) (*task, error) {
	refs, err := dependencies.RefsOf(msg)
	if err != nil {
		return nil, err
	}
	if err := m.objects.Hold(refs); err != nil {
		return nil, fmt.Errorf("task %s: %w", msg.GetId(), err)
	}
	t := &task{
		m: m, id: msg.GetId(), digest: string(msg.GetSpecDigest()), spec: m.objects.Spec(msg.GetSpecDigest()), refs: refs,
		assigned: msg, desired: msg.GetDesiredState(), unsure: !m.synced,
	}
	if known := msg.GetKnownState(); known > musterv1.TaskState_ACCEPTED {
		// A worker with this id had it before and forgot.
		t.floor = known
		t.status.State = known
		t.adopt = !lifecycle.Ended(known)
	}
	return t, nil
}

// restored makes a task of what was kept of it. Of the objects that it refers to
// only its spec is kept.
func (m *Manager) restored(id string, record *taskdb.Record) *task {
	digest := record.Assigned.GetSpecDigest()
	refs := []dependencies.Ref{dependencies.SpecRef(digest)}
	if err := m.objects.Hold(refs); err != nil {
		m.log.Error("failed to restore a task's spec", zap.String("task", id), zap.Error(err))
		refs = nil
	}
	t := &task{
		m: m, id: id, digest: string(digest), spec: m.objects.Spec(digest), refs: refs,
		assigned: record.Assigned, desired: record.Assigned.GetDesiredState(),
		handle: record.Handle, withdrawn: record.Withdrawn,
	}
	if record.Status != nil {
		t.status = lifecycle.FromReport(record.Status)
		t.kept = t.status
		return t
	}
	if known := record.Assigned.GetKnownState(); known > musterv1.TaskState_ACCEPTED {
		t.floor = known
		t.status.State = known
		t.adopt = !lifecycle.Ended(known)
	}
	return t
}
