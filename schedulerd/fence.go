package schedulerd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// errFenced says that another scheduler has acquired the shard.
var errFenced = errors.New("another scheduler holds the shard")

// fence prevents two schedulers from giving one task two nodes. Assignments are
// sharded by node, so their heads do not guard this. A lock cannot guard it either,
// because a scheduler that was paused does not know that it lost its lock. So each
// shard has a record in table scheduler_fences that names its scheduler. A scheduler
// that gains the shard writes the record, in a transaction that also checks that it
// has seen the newest assignments of all nodes. Every assignment is committed in a
// transaction that reads the record, and so fails if another scheduler has written it
// since.
//
// Each acquisition writes a holder of its own. If the outcome of a commit is unknown,
// acquiring the fence again settles it: either the commit shows by then, or it is
// never applied.
type fence struct {
	tables *state.Tables
	store  *store.Store
	holder string

	mu sync.Mutex
	// acquired holds what this scheduler last wrote into each fence, nil if that is
	// not known to be there. ends holds what ends the wait for another scheduler to
	// write there.
	acquired [store.Shards]*recordv1.SchedulerFence
	ends     [store.Shards]context.CancelFunc
}

// fenceKey returns the key of a shard's fence.
func fenceKey(shard int) string { return strconv.Itoa(shard) }

// keyIn returns a key that lies in a shard of every table. It is the key under which
// versions before v0.1.0 keep the shard's fence in table placements.
func keyIn(shard int) string {
	for n := 0; ; n++ {
		if key := "fence" + strconv.Itoa(n); store.ShardOf(key) == shard {
			return key
		}
	}
}

// acquire makes this scheduler the shard's. Until it returns nothing may be placed
// that rests on what was known before.
func (f *fence) acquire(ctx context.Context, shard int) error {
	next := &recordv1.SchedulerFence{Holder: f.holder + "/" + state.NewID()}
	err := f.store.Update(ctx, func(tx *store.Tx) error {
		// Reading a key of each shard makes the transaction check that this
		// process knows what is newest there.
		for s := range store.Shards {
			f.tables.Assignments.Get(tx, keyIn(s))
		}
		old, _ := f.tables.SchedulerFences.Get(tx, fenceKey(shard))
		next.Term = old.Value.GetTerm() + 1
		f.tables.SchedulerFences.Put(tx, fenceKey(shard), proto.CloneOf(next))
		// A scheduler of a version before v0.1.0 reads and writes this record only.
		f.tables.Placements.Put(tx, keyIn(shard), &recordv1.Placement{Reason: next.Holder})
		return nil
	})
	if err != nil {
		return fmt.Errorf("acquire fence of shard %d: %w", shard, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acquired[shard] = next
	return nil
}

// wait returns when another scheduler has written the shard's fence, when the fence
// is invalidated, or when ctx ends.
func (f *fence) wait(ctx context.Context, shard int) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	mine := f.acquired[shard]
	f.ends[shard] = end
	f.mu.Unlock()
	for seen := f.store.Snapshot(); f.holds(seen, shard, mine); {
		next, err := f.store.Wait(ctx, seen, f.tables.SchedulerFences, f.tables.Placements)
		if err != nil {
			return
		}
		seen = next
	}
}

// holds reports whether what this scheduler wrote into a fence is still there: in
// table scheduler_fences, and where schedulers of versions before v0.1.0 write. One
// of them may have the shard during an upgrade. The release after v0.1.0 may stop
// reading and writing the record in table placements.
func (f *fence) holds(r store.Reader, shard int, mine *recordv1.SchedulerFence) bool {
	e, ok := f.tables.SchedulerFences.Get(r, fenceKey(shard))
	former, formerOK := f.tables.Placements.Get(r, keyIn(shard))
	return mine != nil && ok && e.Value.Holder == mine.Holder && e.Value.Term == mine.Term &&
		formerOK && former.Value.Reason == mine.Holder
}

// invalidate has the shard's fence acquired again, before anything else is placed
// there.
func (f *fence) invalidate(shard int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acquired[shard] = nil
	if end := f.ends[shard]; end != nil {
		end()
	}
}

// check makes a transaction depend on the service's shard still being this
// scheduler's.
func (f *fence) check(tx *store.Tx, service string) error {
	shard := store.ShardOf(service)
	f.mu.Lock()
	mine := f.acquired[shard]
	f.mu.Unlock()
	if !f.holds(tx, shard, mine) {
		return errFenced
	}
	return nil
}
