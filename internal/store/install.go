package store

import (
	"slices"

	"github.com/musterhq/muster/internal/kv"
)

// newShard is a shard's new state.
type newShard struct {
	table, shard int
	state        *shard
}

// differs reports whether one of the tables (or any, if none is given) has been
// loaded and is not what it is in after.
func (sn *Snapshot) differs(after *Snapshot, tables []TableDef) bool {
	if len(tables) == 0 {
		tables = sn.defs
	}
	if after == nil {
		for _, t := range tables {
			if sn.tables[indexOf(sn.defs, t)] == nil {
				return false
			}
		}
		return true
	}
	for _, t := range tables {
		i := indexOf(sn.defs, t)
		if sn.tables[i] != after.tables[i] {
			return true
		}
	}
	return false
}

// install puts shards into the newest snapshot, all at once, and counts a table
// (unless it is -1) as loaded. Shards that are there already in a newer state
// stay: so whichever of several readers and committers comes last, an update
// that is in one of the states is in the snapshot in all its shards.
func (s *Store) install(loaded int, shards []newShard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cur := s.current.Load()
	tables := slices.Clone(cur.tables)
	changed := false
	if loaded >= 0 && tables[loaded] == nil {
		tables[loaded] = newTableState()
		changed = true
	}
	for _, n := range shards {
		ts := tables[n.table]
		if n.state.index <= ts.shards[n.shard].index {
			continue
		}
		if ts == cur.tables[n.table] {
			copied := *ts
			ts = &copied
			tables[n.table] = ts
		}
		ts.shards[n.shard] = n.state
		changed = true
	}
	if changed {
		s.publish(&Snapshot{defs: cur.defs, tables: tables, epoch: cur.epoch})
	}
}

// replace makes tables the newest ones, older than they were or not, if nothing has
// changed since before.
func (s *Store) replace(before *Snapshot, tables []*tableState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.Load() != before {
		return false
	}
	s.publish(&Snapshot{defs: before.defs, tables: tables, epoch: before.epoch + 1})
	return true
}

// publish makes a snapshot the newest one and wakes who waits for it. The lock
// is held.
func (s *Store) publish(sn *Snapshot) {
	s.current.Store(sn)
	close(s.changed)
	s.changed = make(chan struct{})
}

// installCommit installs what a transaction has written. pairs are its results,
// which hold the heads' new indexes.
func (s *Store) installCommit(p *plan, pairs []kv.Pair) {
	index := make(map[string]uint64, len(p.shards))
	for _, pair := range pairs {
		index[pair.Key] = pair.Index
	}
	var shards []newShard
	for _, ps := range p.shards {
		if ps.next != nil {
			ps.next.index = index[ps.key]
			shards = append(shards, newShard{table: ps.table, shard: ps.shard, state: ps.next})
		}
	}
	s.install(-1, shards)
}
