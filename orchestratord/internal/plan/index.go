package plan

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"github.com/musterhq/muster/internal/state"
)

// Index holds the tasks of one service in order of their keys, joined. To join 10,000
// tasks takes many times as long as to decide on them, so what has not changed is
// kept.
//
// It also remembers which slots are settled: each has one task, which runs as it
// should. A decision leaves them out, so that what becomes of one task of a service
// costs the same whether it has ten tasks or 100,000. This saves time and changes no
// decision, if [Index.Touch] tells of tasks whose nodes have changed.
type Index struct {
	service string
	tasks   btree.Map[string, *state.Task]
	// sorted holds all tasks again; nil if they have to be gathered.
	sorted []*state.Task

	// origin is what tasks are created from where slots are settled, nil if none were
	// looked for.
	origin *state.Origin
	// settled and unsettled hold the slots' numbers. touched holds those of the
	// unsettled slots that may be settled by now.
	settled, unsettled, touched map[uint64]struct{}
}

// NewIndex returns an index of a service's tasks, which come in order of their keys.
func NewIndex(service string, tasks iter.Seq[*state.Task]) *Index {
	x := &Index{service: service}
	for t := range tasks {
		x.tasks.Load(t.Key, t)
	}
	return x
}

// Set puts a task in, and returns what it was before, or nil.
func (x *Index) Set(t *state.Task) *state.Task {
	old, _ := x.tasks.Set(t.Key, t)
	x.sorted = nil
	x.Touch(t)
	return old
}

// Remove takes a task out.
func (x *Index) Remove(key string) {
	if old, ok := x.tasks.Delete(key); ok {
		x.sorted = nil
		x.Touch(old)
	}
}

// Touch notes that a task has changed, or something that it depends on: whether its
// node keeps it, meets the constraints or has room for it.
func (x *Index) Touch(t *state.Task) {
	if x.origin != nil {
		delete(x.settled, t.Record.Slot)
		x.unsettled[t.Record.Slot] = struct{}{}
		x.touched[t.Record.Slot] = struct{}{}
	}
}

// Empty reports whether there are no tasks.
func (x *Index) Empty() bool { return x.tasks.Len() == 0 }

// All returns the tasks in order of their keys.
func (x *Index) All() []*state.Task {
	if x.sorted == nil {
		x.sorted = x.tasks.Values()
	}
	return x.sorted
}

// settle finds slots that are settled now: among those that were touched, or among all
// if new tasks are created from something else than before.
func (x *Index) settle(of state.Origin, settled func(*state.Task) bool) {
	if x.origin == nil || *x.origin != of {
		x.settleAll(of, settled)
		return
	}
	for number, tasks := range x.slots(x.touched) {
		delete(x.touched, number)
		if number > 0 && len(tasks) == 1 && settled(tasks[0]) {
			delete(x.unsettled, number)
			x.settled[number] = struct{}{}
		}
	}
	for number := range x.touched { // it no longer has tasks
		delete(x.unsettled, number)
	}
	clear(x.touched)
}

func (x *Index) settleAll(of state.Origin, settled func(*state.Task) bool) {
	x.origin = &of
	x.settled, x.unsettled, x.touched = map[uint64]struct{}{}, map[uint64]struct{}{}, map[uint64]struct{}{}
	x.tasks.Scan(func(_ string, t *state.Task) bool {
		number := t.Record.Slot
		_, second := x.settled[number]
		_, unsettled := x.unsettled[number]
		if number == 0 || second || unsettled || !settled(t) {
			x.Touch(t)
		} else {
			x.settled[number] = struct{}{}
		}
		return true
	})
	clear(x.touched)
}

// unsettledTasks returns the tasks of all slots that are not settled, in order of their
// keys.
func (x *Index) unsettledTasks() []*state.Task {
	var tasks []*state.Task
	for _, those := range x.slots(x.unsettled) {
		tasks = append(tasks, those...)
	}
	return tasks
}

// manySlots is from what part of all tasks on slots are found by going through them
// all: to search for one takes some three times the time to pass it.
const manySlots = 3

// slots yields the tasks of some slots, those that have any, in order of their keys.
// The slices hold until the next; a slot that has been yielded may be removed.
func (x *Index) slots(some map[uint64]struct{}) iter.Seq2[uint64, []*state.Task] {
	if len(some)*manySlots < x.tasks.Len() {
		return x.search(slices.Sorted(maps.Keys(some)))
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
		x.tasks.Scan(func(_ string, t *state.Task) bool {
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

// search yields what slots yields, of a few slots.
func (x *Index) search(numbers []uint64) iter.Seq2[uint64, []*state.Task] {
	return func(yield func(uint64, []*state.Task) bool) {
		var tasks []*state.Task
		for _, number := range numbers {
			if tasks = x.slot(tasks[:0], number); len(tasks) > 0 && !yield(number, tasks) {
				return
			}
		}
	}
}

// slot appends the tasks of a slot, in order of their keys.
func (x *Index) slot(tasks []*state.Task, number uint64) []*state.Task {
	prefix := state.TaskKey(x.service, number, "", "")
	x.tasks.Ascend(prefix, func(key string, t *state.Task) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		tasks = append(tasks, t)
		return true
	})
	return tasks
}
