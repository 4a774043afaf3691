package orchestratord

import (
	"iter"
	"maps"
	"slices"
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

// manySlots is from what part of all tasks on slots are found by going through them
// all: to search for one takes some three times as long as to pass it.
const manySlots = 3

// slots yields the tasks of some slots, those that have any, in order of their keys.
// The slices hold until the next; a slot that has been yielded may be removed.
func (l *taskList) slots(some map[uint64]struct{}) iter.Seq2[uint64, []*state.Task] {
	if len(some)*manySlots < l.tasks.Len() {
		return l.search(slices.Sorted(maps.Keys(some)))
	}
	return func(yield func(uint64, []*state.Task) bool) {
		var tasks []*state.Task
		number, more := uint64(0), true
		pass := func() {
			if _, ok := some[number]; ok && len(tasks) > 0 {
				more = yield(number, tasks)
			}
			tasks = tasks[:0]
		}
		l.tasks.Scan(func(_ string, t *state.Task) bool {
			if t.Record.Slot != number {
				pass()
				number = t.Record.Slot
			}
			tasks = append(tasks, t)
			return more
		})
		if more {
			pass()
		}
	}
}

// search is slots of a few.
func (l *taskList) search(numbers []uint64) iter.Seq2[uint64, []*state.Task] {
	return func(yield func(uint64, []*state.Task) bool) {
		var tasks []*state.Task
		for _, number := range numbers {
			if tasks = l.slot(tasks[:0], number); len(tasks) > 0 && !yield(number, tasks) {
				return
			}
		}
	}
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
