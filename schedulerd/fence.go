package schedulerd

import (
	"strconv"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// newFences returns the fences that prevent two schedulers from giving one task two nodes.
// Assignments are sharded by node, and decided by service.
func newFences(t *state.Tables, holder string, log *zap.Logger) *fence.Fences {
	return fence.New(fence.Config{
		Holder: holder, Log: log, Tables: []store.TableDef{t.SchedulerFences, t.Placements},
		Read: func(tx *store.Tx, _ int) {
			// Reading a key of each shard makes the transaction check that this process
			// knows what is newest there.
			for shard := range store.Shards {
				t.Assignments.Get(tx, keyIn(shard))
			}
		},
		// Schedulers of versions before v0.1.0 read and write a record in table placements
		// only. One of them may have the shard during an upgrade. The release after v0.1.0
		// may stop reading and writing it.
		Get: func(r store.Reader, shard int) fence.Record {
			e, _ := t.SchedulerFences.Get(r, strconv.Itoa(shard))
			former, _ := t.Placements.Get(r, keyIn(shard))
			record := fence.Record{Term: e.Value.GetTerm()}
			if holder := e.Value.GetHolder(); former.Value.GetReason() == holder {
				record.Holder = holder
			}
			return record
		},
		Put: func(tx *store.Tx, shard int, r fence.Record) {
			t.SchedulerFences.Put(tx, strconv.Itoa(shard), &recordv1.SchedulerFence{Holder: r.Holder, Term: r.Term})
			t.Placements.Put(tx, keyIn(shard), &recordv1.Placement{Reason: r.Holder})
		},
	})
}

// keyIn returns a key that lies in a shard of every table. It is the key under which
// versions before v0.1.0 keep the shard's fence in table placements.
func keyIn(shard int) string {
	for n := 0; ; n++ {
		if key := "fence" + strconv.Itoa(n); store.ShardOf(key) == shard {
			return key
		}
	}
}
