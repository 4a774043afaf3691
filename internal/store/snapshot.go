package store

import "fmt"

// Snapshot is what the store held at one moment, as far as this process knew:
// every update is in it whole or not at all, table by table. It is immutable
// and may be kept for any time.
type Snapshot struct {
	defs []TableDef
	// tables holds nil for a table that has not been loaded.
	tables []*tableState
	// epoch counts how often a table went backwards.
	epoch uint64
}

// Epoch grows each time that a table is found to be in an older state than before,
// because the kv was restored from a snapshot of its own. What was written since
// is gone, also what a user of the store believes that it has done.
func (sn *Snapshot) Epoch() uint64 { return sn.epoch }

// indexOf returns the place of a table among those that are open.
func indexOf(defs []TableDef, t TableDef) int {
	for i, d := range defs {
		if d == t {
			return i
		}
	}
	for i, d := range defs {
		if d.Name() == t.Name() {
			return i
		}
	}
	panic(fmt.Sprintf("store: table %q is not among those that the store was opened with", t.Name()))
}

// emptyTable stands for a table that has not been loaded. It is never changed.
var emptyTable = newTableState()

func (sn *Snapshot) table(t TableDef) *tableState {
	if ts := sn.tables[indexOf(sn.defs, t)]; ts != nil {
		return ts
	}
	return emptyTable
}

func (sn *Snapshot) get(t TableDef, key string) *record {
	return sn.table(t).shards[ShardOf(key)].get(key)
}

func (sn *Snapshot) scan(t TableDef, prefix string, yield func(*record) bool) {
	ts := sn.table(t)
	if oneShard(prefix) {
		ts.shards[ShardOf(prefix)].scan(prefix, yield)
		return
	}
	for _, sh := range ts.shards {
		if !sh.scan(prefix, yield) {
			return
		}
	}
}

// loaded reports whether all tables have been read once.
func (sn *Snapshot) loaded() bool {
	for _, ts := range sn.tables {
		if ts == nil {
			return false
		}
	}
	return true
}
