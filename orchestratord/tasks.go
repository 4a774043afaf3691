package orchestratord

import (
	"iter"
	"strings"

	"github.com/tidwall/btree"

	"github.com/musterhq/muster/internal/state"
)

// taskList holds the tasks of one service in order of their keys, joined, and
// which of its slots are calm. To join 10,000 tasks takes many times as long as to
// decide on them, so what has not changed is kept.
type taskList struct {
	service string
	tasks   btree.Map[string, *state.Task]
	// sorted holds all tasks again; nil if they have to be gathered.
	sorted []*state.Task
	calm   calm
}

// newTaskList returns the list of a service's tasks, which come in order of their
// keys.
func newTaskList(service string, tasks iter.Seq[*state.Task]) *taskList {
	l := &taskList{service: service}
	for t := range tasks {
		l.tasks.Load(t.Key, t)
	}
	return l
}

// set puts a task in, and returns what it was before, or nil.
func (l *taskList) set(t *state.Task) *state.Task {
	old, _ := l.tasks.Set(t.Key, t)
	l.sorted = nil
	l.calm.touch(t)
	return old
}

// remove takes a task out.
func (l *taskList) remove(key string) {
	if old, ok := l.tasks.Delete(key); ok {
		l.sorted = nil
		l.calm.touch(old)
	}
}

func (l *taskList) empty() bool { return l.tasks.Len() == 0 }

// all returns the tasks in order of their keys.
func (l *taskList) all() []*state.Task {
	if l.sorted == nil {
		l.sorted = l.tasks.Values()
	}
	return l.sorted
}

// slot appends the tasks of a slot, in order of their keys.
func (l *taskList) slot(tasks []*state.Task, number uint64) []*state.Task {
	prefix := state.TaskKey(l.service, number, "", "")
	l.tasks.Ascend(prefix, func(key string, t *state.Task) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		tasks = append(tasks, t)
		return true
	})
	return tasks
}
