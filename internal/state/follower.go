package state

import (
	"iter"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// Follower advances from snapshot to snapshot. It indexes the records of each task by
// task id, which the keys of the tables cannot, and so knows the node of a task. It
// reports which services and tasks have changed, so that a loop can skip all others.
//
// It needs the open tables services, tasks, assignments and statuses, and must be used
// by one goroutine at a time.
type Follower struct {
	tables *Tables
	now    *store.Snapshot
	parts  map[string]*parts // by task id
}

// parts are the records of one task; nil for those that do not exist.
type parts struct {
	task       *store.Entry[*recordv1.Task]
	node       string
	assignment *store.Entry[*recordv1.Assignment]
	// status is the report of the assignment's node.
	status *store.Entry[*recordv1.Status]
}

// Delta lists the differences between two snapshots.
type Delta struct {
	// Services holds the ids of services with any change: of the spec, a task, an
	// assignment or a status.
	Services map[string]struct{}
	// Tasks holds the ids of tasks with any change.
	Tasks map[string]struct{}
}

// NewFollower returns a follower without a snapshot.
func NewFollower(tables *Tables) *Follower {
	return &Follower{tables: tables, parts: map[string]*parts{}}
}

// Snapshot returns the follower's current snapshot; nil before the first Advance.
func (f *Follower) Snapshot() *store.Snapshot { return f.now }

// Advance moves to a later snapshot and returns the differences. The first call reports
// all services and tasks.
func (f *Follower) Advance(to *store.Snapshot) Delta {
	d := Delta{Services: map[string]struct{}{}, Tasks: map[string]struct{}{}}
	mark := func(service, task string) {
		d.Services[service] = struct{}{}
		if task != "" {
			d.Tasks[task] = struct{}{}
		}
	}
	for c := range f.tables.Services.Changes(f.now, to) {
		mark(c.Key(), "")
	}
	for c := range f.tables.Tasks.Changes(f.now, to) {
		service, _, task := SplitKey(c.Key())
		f.of(task).task = c.New
		mark(service, task)
	}
	for c := range f.tables.Assignments.Changes(f.now, to) {
		node, service, task := SplitKey(c.Key())
		f.assign(to, f.of(task), node, c.New)
		mark(service, task)
	}
	for c := range f.tables.Statuses.Changes(f.now, to) {
		node, service, task := SplitKey(c.Key())
		if p := f.of(task); p.node == node {
			p.status = c.New
		}
		mark(service, task)
	}
	for task := range d.Tasks {
		if p := f.parts[task]; p.task == nil && p.assignment == nil {
			delete(f.parts, task)
		}
	}
	f.now = to
	return d
}

// of returns the parts of a task, to be changed.
func (f *Follower) of(task string) *parts {
	p := f.parts[task]
	if p == nil {
		p = &parts{}
		f.parts[task] = p
	}
	return p
}

// assign records that a node has a task, or no longer has it. Tables are read
// independently, so the node's status may precede the assignment.
func (f *Follower) assign(to *store.Snapshot, p *parts, node string, assignment *store.Entry[*recordv1.Assignment]) {
	switch {
	case assignment == nil && p.node == node:
		p.node, p.assignment, p.status = "", nil, nil
	case assignment == nil:
	case p.node == node:
		p.assignment = assignment
	default:
		p.node, p.assignment, p.status = node, assignment, nil
		if status, ok := f.tables.Statuses.Get(to, assignment.Key); ok {
			p.status = &status
		}
	}
}

// Task returns a task by its id.
func (f *Follower) Task(id string) (*Task, bool) {
	p := f.parts[id]
	if p == nil || p.task == nil {
		return nil, false
	}
	return p.join(), true
}

// join builds a task from its parts, which must include the task's own record.
func (p *parts) join() *Task {
	service, _, id := SplitKey(p.task.Key)
	t := &Task{ID: id, ServiceID: service, Key: p.task.Key, Version: p.task.Version, Record: p.task.Value, NodeID: p.node}
	if p.assignment != nil {
		t.Assignment, t.AssignmentVersion = p.assignment.Value, p.assignment.Version
	}
	if p.status != nil {
		t.Status, t.StatusVersion = p.status.Value, p.status.Version
	}
	return t
}

// ServiceTasks returns the tasks of a service, sorted by slot or node.
func (f *Follower) ServiceTasks(service string) iter.Seq[*Task] {
	return f.scan(service + "/")
}

// Tasks returns all tasks, service by service.
func (f *Follower) Tasks() iter.Seq[*Task] { return f.scan("") }

// NodeTasks returns the tasks that are assigned to a node. It skips tasks whose record
// the orchestrator has already removed.
func (f *Follower) NodeTasks(node string) iter.Seq[*Task] {
	return func(yield func(*Task) bool) {
		for a := range f.tables.Assignments.Scan(f.now, node+"/") {
			_, _, id := SplitKey(a.Key)
			t, ok := f.Task(id)
			if ok && t.NodeID == node && !yield(t) {
				return
			}
		}
	}
}

// AssignedTaskKey returns the key of the assigned task's record.
func AssignedTaskKey(node, service, task string, a *recordv1.Assignment) string {
	return TaskKey(service, a.Slot, node, task)
}

func (f *Follower) scan(prefix string) iter.Seq[*Task] {
	return func(yield func(*Task) bool) {
		for e := range f.tables.Tasks.Scan(f.now, prefix) {
			_, _, id := SplitKey(e.Key)
			if t, ok := f.Task(id); ok && !yield(t) {
				return
			}
		}
	}
}
