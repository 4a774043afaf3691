package shards

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Directory knows which replica of a subsystem holds which shard, for those
// who must reach it. What it says may be some milliseconds old.
type Directory struct {
	kv                kv.KV
	prefix, subsystem string
	log               *zap.Logger

	mu      sync.Mutex
	owners  map[int]Member
	members []Member
	// loaded is closed when both lists have been read once.
	loaded              chan struct{}
	sawOwners, sawMembr bool
	// changed is closed and replaced at each change.
	changed chan struct{}
}

// NewDirectory returns a directory of a subsystem. Run fills it.
func NewDirectory(store kv.KV, prefix, subsystem string, log *zap.Logger) *Directory {
	return &Directory{
		kv: store, prefix: prefix, subsystem: subsystem, log: log,
		loaded: make(chan struct{}), changed: make(chan struct{}),
	}
}

// Run follows the locks and members until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		prefix := locksPrefix(d.prefix, d.subsystem)
		follow(ctx, d.kv, prefix, d.log, func(pairs []kv.Pair) {
			owners := map[int]Member{}
			for name, m := range decodeMembers(pairs, prefix, d.log) {
				if shard, err := strconv.Atoi(name); err == nil {
					owners[shard] = m
				}
			}
			d.update(func() { d.owners, d.sawOwners = owners, true })
		})
	})
	wg.Go(func() {
		prefix := membersPrefix(d.prefix, d.subsystem)
		follow(ctx, d.kv, prefix, d.log, func(pairs []kv.Pair) {
			byName := decodeMembers(pairs, prefix, d.log)
			members := make([]Member, 0, len(byName))
			for _, name := range slices.Sorted(maps.Keys(byName)) {
				members = append(members, byName[name])
			}
			d.update(func() { d.members, d.sawMembr = members, true })
		})
	})
	wg.Wait()
	return nil
}

func (d *Directory) update(set func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.sawOwners && d.sawMembr
	set()
	if !was && d.sawOwners && d.sawMembr {
		close(d.loaded)
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// Ready waits until the directory has been filled once.
func (d *Directory) Ready(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.loaded:
		return nil
	}
}

// Owner returns the replica that holds a shard, false if nobody does.
func (d *Directory) Owner(shard int) (Member, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.owners[shard]
	return m, ok
}

// Owners returns the holders of all shards that are held.
func (d *Directory) Owners() map[int]Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.owners)
}

// Members returns all replicas, in order of instance.
func (d *Directory) Members() []Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.members)
}

// Changed returns a channel that is closed at the next change.
func (d *Directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}
