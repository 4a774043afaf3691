package tasks

import (
	"context"
	"maps"
	"slices"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// changed is what a session does about a change: it reports the status, and the
// managers never let a state fall.
func (w *worker) changed(id string, _ bool) {
	// Statuses are reported in the order in which they are read.
	w.reporting.Lock()
	defer w.reporting.Unlock()
	status := w.manager.Status(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.life != w.machine.life || status == nil {
		return
	}
	w.report(id, status)
}

// report takes in a status. The caller holds mu.
func (w *worker) report(id string, status *dispatcherv1.ReportedStatus) {
	state, before := status.GetStatus().GetState(), w.reported[id].GetStatus().GetState()
	if state < before {
		w.t.Errorf("%s was reported as %s after %s", id, state, before)
	}
	if stored := w.disk.state(id); w.refuses == nil && stored < state {
		w.t.Errorf("%s was reported as %s while the store holds %s", id, state, stored)
	}
	w.reported[id] = status
	w.history[id] = append(w.history[id], status)
}

// sync begins a session and sends the complete set of assignments.
func (w *worker) sync() {
	w.manager.Begin()
	w.mu.Lock()
	var msg dispatcherv1.Assignments
	for _, id := range slices.Sorted(maps.Keys(w.wanted)) {
		task := w.connect(newAssignment(id, w.wanted[id]))
		task.KnownState = w.reported[id].GetStatus().GetState()
		msg.Tasks = append(msg.Tasks, task)
	}
	msg.Objects = w.objects
	w.mu.Unlock()
	msg.Complete, msg.Last, msg.Specs = true, true, []*dispatcherv1.AssignedSpec{w.spec()}
	w.assign(&msg)
	for _, id := range w.manager.IDs() {
		w.changed(id, true)
	}
}

func (w *worker) assign(msg *dispatcherv1.Assignments) {
	if err := w.manager.Assign(context.Background(), msg); err != nil && !w.crashed() {
		w.t.Error(err)
	}
}

// spec returns the spec of the machine's tasks.
func (m *machine) spec() *dispatcherv1.AssignedSpec {
	return &dispatcherv1.AssignedSpec{Digest: []byte("spec"), Spec: &musterv1.TaskSpec{
		Group:   m.group,
		Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: kind}},
	}}
}

// newAssignment returns a copy of an assignment.
func newAssignment(id string, like *dispatcherv1.AssignedTask) *dispatcherv1.AssignedTask {
	return &dispatcherv1.AssignedTask{
		Id: id, ServiceId: "svc", ServiceName: "web", Slot: 1, SpecDigest: []byte("spec"),
		DesiredState: like.GetDesiredState(), ServiceLabels: like.GetServiceLabels(),
	}
}

// want assigns a task, or changes what is desired of it, and tells the worker.
func (m *machine) want(id string, desired musterv1.TaskState) {
	m.wantLabels(id, desired, m.wanted[id].GetServiceLabels())
}

func (m *machine) wantLabels(id string, desired musterv1.TaskState, labels map[string]string) {
	task := m.connect(newAssignment(id, &dispatcherv1.AssignedTask{DesiredState: desired, ServiceLabels: labels}))
	m.mu.Lock()
	m.wanted[id] = task
	m.mu.Unlock()
	m.worker.assign(&dispatcherv1.Assignments{Objects: m.objects, Tasks: []*dispatcherv1.AssignedTask{task}, Specs: []*dispatcherv1.AssignedSpec{m.spec()}})
}

// withdraw has the worker remove a task.
func (m *machine) withdraw(ids ...string) {
	m.mu.Lock()
	for _, id := range ids {
		delete(m.wanted, id)
	}
	m.mu.Unlock()
	m.worker.assign(&dispatcherv1.Assignments{Removed: ids})
}

// states returns the states that were reported of a task, in order.
func (m *machine) states(id string) (states []musterv1.TaskState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.history[id] {
		states = append(states, r.GetStatus().GetState())
	}
	return slices.Compact(states)
}

// wantState fails the test unless a state was reported last.
func (m *machine) wantState(id string, want musterv1.TaskState) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.reported[id].GetStatus(); got.GetState() != want {
		m.t.Errorf("%s was reported as %v, want %s", id, got, want)
	}
}

// wantError fails the test unless an error was reported last.
func (m *machine) wantError(id, want string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.reported[id].GetStatus().GetError(); got != want {
		m.t.Errorf("error of %s = %q, want %q", id, got, want)
	}
}
