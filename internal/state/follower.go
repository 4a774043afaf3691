package state

import (
	"iter"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// Follower goes from snapshot to snapshot and keeps the index that the keys do
// not give: the records of a task by its id, and so which node it is assigned
// to. It says which services and tasks have changed, so that a loop looks at
// these only.
//
// It needs the tables services, tasks, assignments and statuses to be open,
// and is used by one goroutine at a time.
type Follower struct {
	tables *Tables
	now    *store.Snapshot
	parts  map[string]*parts // by task id
}

// parts are the records of one task; nil where there is none.
type parts struct {
	task       *store.Entry[*recordv1.Task]
	node       string
	assignment *store.Entry[*recordv1.Assignment]
	// status is what the assignment's node says.
	status *store.Entry[*recordv1.Status]
}

// Delta says where two snapshots differ.
type Delta struct {
	// Services holds the ids of services of which anything changed: the spec,
	// a task, an assignment, a status.
	Services map[string]struct{}
	// Tasks holds the ids of tasks of which anything changed.
	Tasks map[string]struct{}
}

// NewFollower returns a follower that has seen nothing yet.
func NewFollower(tables *Tables) *Follower {
	return &Follower{tables: tables, parts: map[string]*parts{}}
}

// Snapshot returns the snapshot that the follower has come to, nil at first.
func (f *Follower) Snapshot() *store.Snapshot { return f.now }

// Advance moves to a newer snapshot and returns what is different. The first
// call reports everything.
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

// assign notes that a node has a task, or no longer has it. Tables come one by
// one, so the node's status may have been there before.
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

// join makes a task of its parts, of which the task's own record is one.
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

// ServiceTasks returns the tasks of a service, in order of slot or node.
func (f *Follower) ServiceTasks(service string) iter.Seq[*Task] {
	return f.scan(service + "/")
}

// Tasks returns all tasks, service by service.
func (f *Follower) Tasks() iter.Seq[*Task] { return f.scan("") }

// NodeTasks returns the tasks that are assigned to a node. The record of a
// task whose orchestrator has already removed it is nil in none: it is left
// out.
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

// AssignedTaskKey is the key of the task that an assignment is for.
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
