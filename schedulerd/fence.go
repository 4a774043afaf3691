package schedulerd

import (
	"context"
	"errors"
	"fmt"
	"strconv"

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
type fence struct {
	tables *state.Tables
	store  *store.Store
	holder string
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

// raise makes this scheduler the shard's.
func (f *fence) raise(ctx context.Context, shard int) error {
	err := f.store.Update(ctx, func(tx *store.Tx) error {
		// Reading a key of each shard makes the transaction check that this
		// process knows what is newest there.
		for s := range store.Shards {
			f.tables.Assignments.Get(tx, fenceKey(s))
		}
		f.tables.Placements.Put(tx, fenceKey(shard), &recordv1.Placement{Reason: f.holder})
		return nil
	})
	if err != nil {
		return fmt.Errorf("raise fence of shard %d: %w", shard, err)
	}
	return nil
}

// check makes a transaction depend on this scheduler's still being the
// service's.
func (f *fence) check(tx *store.Tx, service string) error {
	e, ok := f.tables.Placements.Get(tx, fenceKey(store.ShardOf(service)))
	if !ok || e.Value.Reason != f.holder {
		return errFenced
	}
	return nil
}
