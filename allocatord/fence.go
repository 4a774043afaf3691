package allocatord

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

// errFenced says that another allocator has acquired the shard.
var errFenced = errors.New("another allocator holds the shard")

// fence prevents two allocators from giving one port or address to two holders. A
// decision rests on everything that the shard has given, which lies in many shards of the
// tables, so their heads do not guard it. A lock cannot guard it either, because an
// allocator that was paused does not know that it lost its lock. So each shard has a
// record in table allocator_fences that names its allocator. An allocator that gains the
// shard writes the record, in a transaction that also checks that it has seen the newest
// of what the shard has given. Everything is committed in a transaction that reads the
// record, and so fails if another allocator has written it since.
//
// Each acquisition writes a holder of its own. If the outcome of a commit is unknown,
// acquiring the fence again settles it: either the commit shows by then, or it is
// never applied.
type fence struct {
	tables *state.Tables
	holder string
	// read reads what decisions in a shard rest on.
	read func(tx *store.Tx, shard int)

	mu sync.Mutex
	// acquired holds what this allocator last wrote into each fence, nil if that is
	// not known to be there. ends holds what ends the wait for another allocator to
	// write there.
	acquired map[int]*recordv1.AllocatorFence
	ends     map[int]context.CancelFunc
}

func newFence(tables *state.Tables, holder string, read func(tx *store.Tx, shard int)) *fence {
	return &fence{
		tables: tables, holder: holder, read: read,
		acquired: map[int]*recordv1.AllocatorFence{}, ends: map[int]context.CancelFunc{},
	}
}

func fenceKey(shard int) string { return strconv.Itoa(shard) }

// keyIn returns a key that lies in a shard of every table.
func keyIn(shard int) string {
	for n := 0; ; n++ {
		if key := "shard" + strconv.Itoa(n); store.ShardOf(key) == shard {
			return key
		}
	}
}

// readAll makes a transaction check that this process knows what is newest in all shards
// of a table.
func readAll[T any](tx *store.Tx, get func(r store.Reader, key string) (T, bool)) {
	for shard := range store.Shards {
		get(tx, keyIn(shard))
	}
}

// acquire makes this allocator the shard's. Until it returns nothing may be given that
// rests on what was known before.
func (f *fence) acquire(ctx context.Context, s *store.Store, shard int) error {
	next := &recordv1.AllocatorFence{Holder: f.holder + "/" + state.NewID()}
	err := s.Update(ctx, func(tx *store.Tx) error {
		f.read(tx, shard)
		old, _ := f.tables.AllocatorFences.Get(tx, fenceKey(shard))
		next.Term = old.Value.GetTerm() + 1
		f.tables.AllocatorFences.Put(tx, fenceKey(shard), proto.CloneOf(next))
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

// wait returns when another allocator has written the shard's fence, when the fence
// is invalidated, or when ctx ends.
func (f *fence) wait(ctx context.Context, s *store.Store, shard int) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	mine := f.acquired[shard]
	f.ends[shard] = end
	f.mu.Unlock()
	for seen := s.Snapshot(); f.holds(seen, shard, mine); {
		next, err := s.Wait(ctx, seen, f.tables.AllocatorFences)
		if err != nil {
			return
		}
		seen = next
	}
}

// holds reports whether what this allocator wrote into a fence is still there.
func (f *fence) holds(r store.Reader, shard int, mine *recordv1.AllocatorFence) bool {
	e, ok := f.tables.AllocatorFences.Get(r, fenceKey(shard))
	return mine != nil && ok && e.Value.Holder == mine.Holder && e.Value.Term == mine.Term
}

// invalidate has the shard's fence acquired again, before anything else is given there.
func (f *fence) invalidate(shard int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acquired[shard] = nil
	if end := f.ends[shard]; end != nil {
		end()
	}
}

// check makes a transaction depend on the shard still being this allocator's.
func (f *fence) check(tx *store.Tx, shard int) error {
	f.mu.Lock()
	mine := f.acquired[shard]
	f.mu.Unlock()
	if !f.holds(tx, shard, mine) {
		return errFenced
	}
	return nil
}
