package orchestratord

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/musterhq/muster/internal/state"
)

// taskList holds the tasks of one service in order of their keys, joined. To
// join 10,000 tasks takes many times as long as to decide on them, so what has
// not changed is kept. New tasks are put into their places when the list is
// asked for, many at once.
type taskList struct {
	sorted []*state.Task
	added  map[string]*state.Task // by key; none of them is in sorted
}

func newTaskList(tasks iter.Seq[*state.Task]) *taskList {
	return &taskList{sorted: slices.SortedFunc(tasks, byKey), added: map[string]*state.Task{}}
}

func byKey(a, b *state.Task) int { return strings.Compare(a.Key, b.Key) }

// set puts a task in, and returns what it was before, or nil.
func (l *taskList) set(t *state.Task) *state.Task {
	i, ok := slices.BinarySearchFunc(l.sorted, t, byKey)
	if ok {
		old := l.sorted[i]
		l.sorted[i] = t
		return old
	}
	old := l.added[t.Key]
	l.added[t.Key] = t
	return old
}

// remove takes tasks out.
func (l *taskList) remove(keys map[string]struct{}) {
	for key := range keys {
		delete(l.added, key)
	}
	l.sorted = slices.DeleteFunc(l.sorted, func(t *state.Task) bool {
		_, gone := keys[t.Key]
		return gone
	})
}

// all returns the tasks in order of their keys.
func (l *taskList) all() []*state.Task {
	if len(l.added) == 0 {
		return l.sorted
	}
	merged := make([]*state.Task, 0, len(l.sorted)+len(l.added))
	rest := l.sorted
	for _, t := range slices.SortedFunc(maps.Values(l.added), byKey) {
		i, _ := slices.BinarySearchFunc(rest, t, byKey)
		merged = append(append(merged, rest[:i]...), t)
		rest = rest[i:]
	}
	l.sorted = append(merged, rest...)
	clear(l.added)
	return l.sorted
}
