package dispatcherd

import (
	"context"
	"fmt"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/dispatcherd/internal/session"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// follower goes from snapshot to snapshot, and marks what has changed where it
// is worked on. It decides nothing: whoever is told that something changed
// looks at the newest snapshot.
type follower struct {
	store  *store.Store
	tables *state.Tables
	owned  *ownedShards
	now    *store.Snapshot
	// nodes is the one index that keys do not give: which node a task is assigned
	// to.
	nodes map[string]string
}

// newFollower starts from the newest snapshot. From then on no change is
// missed, so it has to be made before anything is worked on.
func newFollower(st *store.Store, tables *state.Tables, owned *ownedShards) *follower {
	f := &follower{store: st, tables: tables, owned: owned, nodes: map[string]string{}}
	f.advance(st.Snapshot())
	return f
}

func (f *follower) run(ctx context.Context) error {
	t := f.tables
	for {
		next, err := f.store.Wait(ctx, f.now, t.Assignments, t.Tasks, t.Specs, t.Services, t.Nodes, t.NodeStates, t.Clusters)
		if err != nil {
			return fmt.Errorf("wait for a change: %w", err)
		}
		f.advance(next)
	}
}

// advance goes on to a snapshot.
func (f *follower) advance(to *store.Snapshot) {
	from, t := f.now, f.tables
	f.now = to
	marked := map[string][]string{}
	for c := range t.Assignments.Changes(from, to) {
		key := c.Key()
		node, _, task := state.SplitKey(key)
		if c.New != nil {
			f.nodes[task] = node
		} else if f.nodes[task] == node {
			delete(f.nodes, task)
		}
		if from != nil {
			marked[node] = append(marked[node], key)
		}
	}
	if from == nil {
		return // there is nobody to tell yet
	}
	if to.Epoch() != from.Epoch() {
		// What workers have reported since is lost. They report everything in a new
		// session.
		for _, s := range f.owned.all() {
			s.EndSessions(session.ErrRestored, nil)
		}
	}
	for c := range t.Tasks.Changes(from, to) {
		if c.Old != nil && c.New != nil && !concerns(c.Old.Value, c.New.Value) {
			continue
		}
		service, _, task := state.SplitKey(c.Key())
		if node, assigned := f.nodes[task]; assigned {
			marked[node] = append(marked[node], state.NodeTaskKey(node, service, task))
		}
	}
	for node, keys := range marked {
		if s, _ := f.owned.of(node); s != nil {
			s.AssignmentsChanged(node, keys)
		}
	}
	if appeared(t.Specs.Changes(from, to)) || appeared(t.Services.Changes(from, to)) {
		for _, s := range f.owned.all() {
			s.ObjectsAppeared()
		}
	}
	for c := range t.Nodes.Changes(from, to) {
		if s, _ := f.owned.of(c.Key()); s != nil {
			s.NodeChanged(c.Key())
		}
	}
	for range t.Clusters.Changes(from, to) {
		for _, s := range f.owned.all() {
			s.ClusterChanged()
		}
	}
	for c := range t.NodeStates.Changes(from, to) {
		if s, _ := f.owned.of(c.Key()); s != nil {
			var record *recordv1.NodeState
			if c.New != nil {
				record = c.New.Value
			}
			s.NodeStateChanged(c.Key(), record)
		}
	}
}

// concerns reports whether a worker has to be told of a task's change.
func concerns(old, new *recordv1.Task) bool {
	return old.DesiredState != new.DesiredState || string(old.SpecDigest) != string(new.SpecDigest)
}

// appeared reports whether there are records that were not there before, which
// others may have waited for.
func appeared[T any](changes func(func(store.Change[T]) bool)) bool {
	for c := range changes {
		if c.Old == nil {
			return true
		}
	}
	return false
}

// followDispatchers tells workers when a dispatcher joins or leaves, so that they
// know where to go if this one fails.
func (d *Daemon) followDispatchers(ctx context.Context) error {
	known := d.sessions.Addresses()
	for {
		changed := d.directory.Changed()
		if now := d.sessions.Addresses(); !slices.Equal(known, now) {
			known = now
			for _, s := range d.owned.all() {
				s.DispatchersChanged()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
