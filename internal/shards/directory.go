package shards

import (
	"context"
	"maps"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Directory says which replica of a subsystem holds which shard, so that callers
// can reach it. Its answers may be some milliseconds old.
type Directory struct {
	roster *Roster
	// own is set if no other directory uses the roster. The directory then runs it.
	own               bool
	prefix, subsystem string
	log               *zap.Logger

	mu      sync.Mutex
	leases  map[int]Lease
	members []Member
	// loaded is closed once both lists have been read.
	loaded                chan struct{}
	sawLeases, sawMembers bool
	// changed is closed and replaced at each change.
	changed chan struct{}
}

// NewDirectory returns an empty directory of a subsystem. Run fills it.
func NewDirectory(store kv.KV, prefix, subsystem string, log *zap.Logger) *Directory {
	d := NewRoster(store, prefix, log, subsystem).Directory(subsystem)
	d.own = true
	return d
}

// Run watches the locks and members until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	locks, members := locksPrefix(d.prefix, d.subsystem), membersPrefix(d.prefix, d.subsystem)
	defer d.roster.locks.subscribe(locks, func(pairs []kv.Pair) {
		held := byShard(decode[Lease](pairs, locks, d.log))
		d.update(func() { d.leases, d.sawLeases = held, true })
	})()
	defer d.roster.members.subscribe(members, func(pairs []kv.Pair) {
		all := inOrder(decode[Member](pairs, members, d.log))
		d.update(func() { d.members, d.sawMembers = all, true })
	})()
	if d.own {
		return d.roster.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

func (d *Directory) update(set func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.sawLeases && d.sawMembers
	set()
	if !was && d.sawLeases && d.sawMembers {
		close(d.loaded)
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// Ready waits until locks and members have been read once.
func (d *Directory) Ready(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.loaded:
		return nil
	}
}

// Owner returns the replica that holds a shard. It returns false if the shard is free.
func (d *Directory) Owner(shard int) (Member, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h, ok := d.leases[shard]
	return h.Member, ok
}

// Owners returns the owner of each shard that has one.
func (d *Directory) Owners() map[int]Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	owners := make(map[int]Member, len(d.leases))
	for shard, h := range d.leases {
		owners[shard] = h.Member
	}
	return owners
}

// Ownership returns a copy of the directory's content.
func (d *Directory) Ownership() Ownership {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Ownership{Members: slices.Clone(d.members), Leases: maps.Clone(d.leases)}
}

// Members returns all replicas, sorted by instance.
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
