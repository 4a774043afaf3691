package store

import "fmt"

// Snapshot is a state of the store as this process has read it. In each table it shows
// every update completely or not at all. It is immutable and may be kept for any time.
type Snapshot struct {
	defs []TableDef
	// tables holds nil for a table that has not been loaded.
	tables []*tableState
	// epoch counts how often the kv was restored to an older state.
	epoch uint64
}

// Epoch increases each time the kv was restored to an older state. Later writes are then
// lost, including those that were reported as committed.
func (sn *Snapshot) Epoch() uint64 { return sn.epoch }

// indexOf returns the index of a table among the open tables.
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

// emptyTable is the state of a table that has not been loaded. It is never changed.
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

// loaded reports whether all tables have been loaded.
func (sn *Snapshot) loaded() bool {
	for _, ts := range sn.tables {
		if ts == nil {
			return false
		}
	}
	return true
}
