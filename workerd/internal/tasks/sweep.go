package tasks

import (
	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// Sweep finds tasks that executors hold and that are not assigned to this worker,
// and removes them. It does nothing until a complete set of assignments has
// arrived, because only then the worker knows what is assigned.
func (m *Manager) Sweep() {
	m.mu.Lock()
	synced, executors := m.synced, m.executors
	m.mu.Unlock()
	if !synced {
		return
	}
	for _, e := range executors {
		if e.Executor == nil || e.Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY {
			continue
		}
		m.spawn(func() { m.sweep(e) })
	}
}

// SetExecutors tells the manager which executors there are and how they are.
func (m *Manager) SetExecutors(all []*executor.Described) {
	m.mu.Lock()
	m.executors = all
	m.mu.Unlock()
	m.Sweep()
}

// sweep removes what one executor holds and is not assigned, once.
func (m *Manager) sweep(e *executor.Described) {
	held, err := m.inventory.all(m.run, e)
	if err != nil {
		if m.run.Err() == nil {
			m.log.Warn("failed to list the tasks of an executor", zap.String("executor", e.Name), zap.Error(err))
		}
		return
	}
	h := m.inventory.of(e.Name)
	var unassigned []*task
	m.mu.Lock()
	if !h.swept {
		h.swept = true
		containers := m.containers()
		for id := range held {
			if m.tasks[id] != nil || containers[id] {
				continue
			}
			t := newTask(m, id)
			t.owner, t.phase, t.goal = e, phaseHeld, musterv1.TaskState_REMOVE
			t.want.withdrawn = true
			t.setRecord(&record{status: lifecycle.Status{State: musterv1.TaskState_RUNNING}, handle: held[id].Handle})
			m.tasks[id] = t
			unassigned = append(unassigned, t)
		}
	}
	m.mu.Unlock()
	for _, t := range unassigned {
		m.log.Warn("removing a task that is not assigned to this worker", zap.String("task", t.id), zap.String("executor", e.Name))
		t.post(wakeUp{})
	}
}

// containers returns the ids of the containers that belong to the groups of tasks. The
// caller holds mu.
func (m *Manager) containers() map[string]bool {
	all := map[string]bool{}
	for _, t := range m.tasks {
		for _, id := range groups.ContainerIDs(t.id, t.spec) {
			all[id] = true
		}
	}
	return all
}
