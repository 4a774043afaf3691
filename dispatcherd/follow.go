package dispatcherd

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/dispatcherd/internal/session"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// follower goes from snapshot to snapshot, and tells the shards what has changed.
// It decides nothing: the shards and sessions look at the newest snapshot, and at the
// index of networks.
type follower struct {
	store    *store.Store
	tables   *state.Tables
	owned    *ownedShards
	networks *networks.Index

	// mu guards now and nodes.
	mu  sync.Mutex
	now *store.Snapshot
	// nodes holds the node of each assigned task. Keys do not lead from a task to its
	// node.
	nodes map[string]string
}

// newFollower returns a follower that starts from the newest snapshot. It must be
// created before the first shard, so that no change is missed.
func newFollower(st *store.Store, tables *state.Tables, owned *ownedShards, index *networks.Index) *follower {
	f := &follower{store: st, tables: tables, owned: owned, networks: index, nodes: map[string]string{}}
	f.catchUp()
	return f
}

func (f *follower) run(ctx context.Context) error {
	t := f.tables
	tables := []store.TableDef{t.Assignments, t.Tasks, t.Specs, t.Services, t.Nodes, t.NodeStates, t.Clusters, t.Configs, t.Blobs, t.Secrets, t.SealedBlobs}
	for {
		if _, err := f.store.Wait(ctx, f.snapshot(), slices.Concat(tables, f.networks.Tables())...); err != nil {
			return fmt.Errorf("wait for a change: %w", err)
		}
		f.catchUp()
	}
}

func (f *follower) snapshot() *store.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// catchUp continues with the newest snapshot.
func (f *follower) catchUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if to := f.store.Snapshot(); to != f.now {
		f.advance(to)
	}
}

// advance continues with a snapshot. The caller holds mu.
func (f *follower) advance(to *store.Snapshot) {
	from, t := f.now, f.tables
	f.now = to
	// Before a session looks at what has changed, the networks must have changed too.
	attached, appearedNetwork := f.networks.Advance(to)
	changed := f.changedTasks(from, to)
	if from == nil {
		return // there are no shards yet
	}
	if to.Epoch() != from.Epoch() {
		// What workers have reported since is lost. They report everything in a new
		// session.
		for _, s := range f.owned.all() {
			s.EndSessions(session.ErrRestored, nil)
		}
	}
	for node, keys := range changed {
		if s, _ := f.owned.of(node); s != nil {
			s.AssignmentsChanged(node, keys)
		}
	}
	f.owned.networksChanged(attached)
	files := f.changedFiles(from, to)
	if appearedNetwork || len(files) > 0 || appeared(t.Specs.Changes(from, to)) || appeared(t.Services.Changes(from, to)) || appeared(t.Blobs.Changes(from, to)) || appeared(t.SealedBlobs.Changes(from, to)) {
		for _, s := range f.owned.all() {
			s.ObjectsChanged(files)
		}
	}
	f.nodesChanged(from, to)
}

// changedTasks returns the keys of assignments that have changed, or whose tasks have, by
// node. It notes which node each task is on.
func (f *follower) changedTasks(from, to *store.Snapshot) map[string][]string {
	changed := map[string][]string{}
	for c := range f.tables.Assignments.Changes(from, to) {
		key := c.Key()
		node, _, task := state.SplitKey(key)
		if c.New != nil {
			f.nodes[task] = node
		} else if f.nodes[task] == node {
			delete(f.nodes, task)
		}
		if from != nil {
			changed[node] = append(changed[node], key)
		}
	}
	if from == nil {
		return nil
	}
	for c := range f.tables.Tasks.Changes(from, to) {
		if c.Old != nil && c.New != nil && !concerns(c.Old.Value, c.New.Value) {
			continue
		}
		service, _, task := state.SplitKey(c.Key())
		if node, assigned := f.nodes[task]; assigned {
			changed[node] = append(changed[node], state.NodeTaskKey(node, service, task))
		}
	}
	return changed
}

// nodesChanged tells the shards which nodes have changed, and the cluster's settings.
func (f *follower) nodesChanged(from, to *store.Snapshot) {
	t := f.tables
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

// changedFiles returns the configs and secrets that have other content than before.
func (f *follower) changedFiles(from, to *store.Snapshot) []assignments.Ref {
	var refs []assignments.Ref
	for c := range f.tables.Configs.Changes(from, to) {
		if c.New != nil && (c.Old == nil || !bytes.Equal(c.Old.Value.Digest, c.New.Value.Digest)) {
			refs = append(refs, assignments.Ref{Kind: assignments.KindConfig, ID: c.Key()})
		}
	}
	for c := range f.tables.Secrets.Changes(from, to) {
		if c.New != nil && (c.Old == nil || !bytes.Equal(c.Old.Value.Digest, c.New.Value.Digest)) {
			refs = append(refs, assignments.Ref{Kind: assignments.KindSecret, ID: c.Key()})
		}
	}
	return refs
}

// concerns reports whether a change of a task concerns its worker.
func concerns(old, new *recordv1.Task) bool {
	return old.DesiredState != new.DesiredState || string(old.SpecDigest) != string(new.SpecDigest)
}

// appeared reports whether there are new records, which assignments may wait for.
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
