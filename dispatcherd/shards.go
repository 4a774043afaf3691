package dispatcherd

import (
	"slices"
	"sync"

	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/session"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/store"
)

// shard is a shard that this replica owns.
type shard struct {
	*liveness.Tracker
	*statuses.Writer
}

// ownedShards are the shards that this replica owns.
type ownedShards struct {
	mu       sync.Mutex
	byNumber [store.Shards]*shard
	// changed is closed and replaced when byNumber changes.
	changed chan struct{}
}

func newOwnedShards() *ownedShards { return &ownedShards{changed: make(chan struct{})} }

// set notes that a shard was gained, or lost if s is nil.
func (o *ownedShards) set(number int, s *shard) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byNumber[number] = s
	close(o.changed)
	o.changed = make(chan struct{})
}

// of returns the shard of a node, nil if this replica does not own it, and a
// channel that is closed when that may have changed.
func (o *ownedShards) of(node string) (*shard, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.byNumber[store.ShardOf(node)], o.changed
}

// Shard implements [session.Shards].
func (o *ownedShards) Shard(node string) (session.Shard, <-chan struct{}) {
	s, changed := o.of(node)
	if s == nil {
		return nil, changed
	}
	return s, changed
}

// all returns the shards.
func (o *ownedShards) all() []*shard {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.byNumber[:]), func(s *shard) bool { return s == nil })
}

// networksChanged tells the sessions of nodes which of their networks have changed.
func (o *ownedShards) networksChanged(nodes map[string][]string) {
	for node, networks := range nodes {
		if s, _ := o.of(node); s != nil {
			s.NetworksChanged(node, networks)
		}
	}
}
