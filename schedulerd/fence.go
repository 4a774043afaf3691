package schedulerd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// errFenced says that another scheduler has taken the shard over.
var errFenced = errors.New("another scheduler holds the shard")

// fence keeps two schedulers from giving one task two nodes. Assignments are
// sharded by node, so their heads do not guard this; and a lock cannot, for a
// scheduler that was paused does not know that it lost it. So each shard has a
// record in table placements that names its scheduler. Who gains the shard
// writes it, in a transaction that also checks that it has seen the newest
// assignments of all nodes; every assignment is committed in a transaction that
// reads it, and so fails when somebody else has written it since.
//
// Each raising writes a name of its own. So when it is not known what became of a
// commit, raising the fence anew settles it: either it shows by then, or it never
// will be applied.
type fence struct {
	tables *state.Tables
	store  *store.Store
	holder string

	mu sync.Mutex
	// raised holds what this scheduler last wrote into each fence, and ends what
	// ends the wait for another to write there.
	raised [store.Shards]string
	ends   [store.Shards]context.CancelFunc
}

// fenceKey is the key of a shard's fence: the first "fence<n>" that lies in the
// shard.
func fenceKey(shard int) string {
	for n := 0; ; n++ {
		if key := "fence" + strconv.Itoa(n); store.ShardOf(key) == shard {
			return key
		}
	}
}

// raise makes this scheduler the shard's. Nothing may be placed meanwhile that
// rests on what was known before.
func (f *fence) raise(ctx context.Context, shard int) error {
	name := f.holder + "/" + state.NewID()
	err := f.store.Update(ctx, func(tx *store.Tx) error {
		// Reading a key of each shard makes the transaction check that this
		// process knows what is newest there.
		for s := range store.Shards {
			f.tables.Assignments.Get(tx, fenceKey(s))
		}
		f.tables.Placements.Put(tx, fenceKey(shard), &recordv1.Placement{Reason: name})
		return nil
	})
	if err != nil {
		return fmt.Errorf("raise fence of shard %d: %w", shard, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.raised[shard] = name
	return nil
}

// stands waits until somebody else has written the shard's fence, or it is to be
// raised anew for doubt, or ctx ends.
func (f *fence) stands(ctx context.Context, shard int) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	name := f.raised[shard]
	f.ends[shard] = end
	f.mu.Unlock()
	if name == "" {
		return // there was doubt already
	}
	for seen := f.store.Snapshot(); ; {
		e, ok := f.tables.Placements.Get(seen, fenceKey(shard))
		if !ok || e.Value.Reason != name {
			return
		}
		next, err := f.store.Wait(ctx, seen, f.tables.Placements)
		if err != nil {
			return
		}
		seen = next
	}
}

// doubt has the shard's fence raised anew, before anything else is placed there.
func (f *fence) doubt(shard int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.raised[shard] = ""
	if end := f.ends[shard]; end != nil {
		end()
	}
}

// check makes a transaction depend on this scheduler's still being the
// service's.
func (f *fence) check(tx *store.Tx, service string) error {
	shard := store.ShardOf(service)
	f.mu.Lock()
	name := f.raised[shard]
	f.mu.Unlock()
	e, ok := f.tables.Placements.Get(tx, fenceKey(shard))
	if !ok || name == "" || e.Value.Reason != name {
		return errFenced
	}
	return nil
}
