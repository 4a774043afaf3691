package state

import (
	"iter"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// Follower goes from snapshot to snapshot and keeps the one index that the
// keys do not give: which node a task is assigned to. It says which services
// and nodes have changed, so that a loop looks at these only.
//
// It needs the tables services, tasks, assignments and statuses to be open,
// and is used by one goroutine at a time.
type Follower struct {
	tables *Tables
	now    *store.Snapshot
	// nodes holds the node of each assigned task, by task id.
	nodes map[string]string
	// keys holds the key of each task's record, by task id.
	keys map[string]string
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
	return &Follower{tables: tables, nodes: map[string]string{}, keys: map[string]string{}}
}

// Snapshot returns the snapshot that the follower has come to, nil at first.
func (f *Follower) Snapshot() *store.Snapshot { return f.now }

// Advance goes on to a newer snapshot and returns what is different. The first
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
		mark(key(c), "")
	}
	for c := range f.tables.Tasks.Changes(f.now, to) {
		service, _, task := SplitKey(key(c))
		if c.New == nil {
			delete(f.keys, task)
		} else {
			f.keys[task] = c.New.Key
		}
		mark(service, task)
	}
	for c := range f.tables.Assignments.Changes(f.now, to) {
		node, service, task := SplitKey(key(c))
		if c.New != nil {
			f.nodes[task] = node
		} else if f.nodes[task] == node {
			delete(f.nodes, task)
		}
		mark(service, task)
	}
	for c := range f.tables.Statuses.Changes(f.now, to) {
		_, service, task := SplitKey(key(c))
		mark(service, task)
	}
	f.now = to
	return d
}

// key is that of whichever side of a change there is.
func key[T any](c store.Change[T]) string {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}

// Task returns a task by its id.
func (f *Follower) Task(id string) (*Task, bool) {
	k, ok := f.keys[id]
	if !ok {
		return nil, false
	}
	e, ok := f.tables.Tasks.Get(f.now, k)
	if !ok {
		return nil, false
	}
	return f.tables.join(f.now, e.Key, e.Version, e.Value, f.nodes[id]), true
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
			_, service, task := SplitKey(a.Key)
			e, ok := f.tables.Tasks.Get(f.now, AssignedTaskKey(node, service, task, a.Value))
			if ok && !yield(f.tables.join(f.now, e.Key, e.Version, e.Value, node)) {
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
			if !yield(f.tables.join(f.now, e.Key, e.Version, e.Value, f.nodes[id])) {
				return
			}
		}
	}
}
