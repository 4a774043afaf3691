package allocatord

import (
	"strconv"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// newFences returns the fences that prevent two allocators from giving one port or address
// to two holders. A decision rests on everything that the shard has given, which lies in
// many shards of the tables: read reads it.
func newFences(t *state.Tables, holder string, log *zap.Logger, read func(tx *store.Tx, shard int)) *fence.Fences {
	return fence.New(fence.Config{
		Holder: holder, Log: log, Tables: []store.TableDef{t.AllocatorFences}, Read: read,
		Get: func(r store.Reader, shard int) fence.Record {
			e, _ := t.AllocatorFences.Get(r, strconv.Itoa(shard))
			return fence.Record{Holder: e.Value.GetHolder(), Term: e.Value.GetTerm()}
		},
		Put: func(tx *store.Tx, shard int, r fence.Record) {
			t.AllocatorFences.Put(tx, strconv.Itoa(shard), &recordv1.AllocatorFence{Holder: r.Holder, Term: r.Term})
		},
	})
}

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
