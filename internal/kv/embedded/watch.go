package embedded

import (
	"context"
	"strings"
)

// watch records recent changes, and wakes the lists that wait for a change. KV.mu guards
// it.
type watch struct {
	// recent holds the latest changes, oldest first. It lacks the changes up to the index
	// forgotten.
	recent    []change
	forgotten uint64
	// groups holds the waiting lists by prefix. Many lists share few prefixes.
	groups map[string]*group
}

// change is a key that was written or removed at an index.
type change struct {
	index uint64
	key   string
}

// recentChanges is the minimum number of changes that are kept.
const recentChanges = 8192

// group is the lists that wait for a change under one prefix.
type group struct {
	wake  chan struct{}
	lists int
}

func (g *group) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-g.wake:
		return nil
	}
}

// changedSince reports whether something under prefix has changed since an index. It also
// returns true if the index is too old to know.
func (w *watch) changedSince(prefix string, after uint64) bool {
	if after < w.forgotten {
		return true
	}
	for i := len(w.recent) - 1; i >= 0 && w.recent[i].index > after; i-- {
		if strings.HasPrefix(w.recent[i].key, prefix) {
			return true
		}
	}
	return false
}

func (w *watch) join(prefix string) *group {
	g := w.groups[prefix]
	if g == nil {
		g = &group{wake: make(chan struct{})}
		w.groups[prefix] = g
	}
	g.lists++
	return g
}

// leave removes the group if it is empty. A group that was woken has already been removed,
// and another one may have replaced it.
func (w *watch) leave(prefix string, g *group) {
	g.lists--
	if g.lists == 0 && w.groups[prefix] == g {
		delete(w.groups, prefix)
	}
}

// note records changes and wakes the lists that wait for one of them.
func (w *watch) note(index uint64, written []write) {
	for _, x := range written {
		w.recent = append(w.recent, change{index, x.pair.Key})
	}
	if len(w.recent) > 2*recentChanges {
		cut := len(w.recent) - recentChanges
		w.forgotten = w.recent[cut-1].index
		w.recent = append(w.recent[:0], w.recent[cut:]...)
	}
	for prefix, g := range w.groups {
		for _, x := range written {
			if strings.HasPrefix(x.pair.Key, prefix) {
				close(g.wake)
				delete(w.groups, prefix)
				break
			}
		}
	}
}

func (w *watch) wakeAll() {
	for _, g := range w.groups {
		close(g.wake)
	}
	clear(w.groups)
}
