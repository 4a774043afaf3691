package store

import (
	"slices"

	"github.com/musterhq/muster/internal/kv"
)

// newShard is the new state of a shard.
type newShard struct {
	table, shard int
	state        *shard
}

// differs reports whether one of the tables (any table, if none is given) differs from
// its state in after. If after is nil, it reports whether all of them are loaded.
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

// install puts shards into the latest snapshot atomically, and marks the table loaded
// (unless it is -1) as loaded. It keeps shards that are already in a newer state. So the
// order of concurrent readers and committers does not matter, and the snapshot shows an
// update in all of its shards or in none.
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

// replace replaces all tables, even by older states, unless the snapshot has changed
// since before.
func (s *Store) replace(before *Snapshot, tables []*tableState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.Load() != before {
		return false
	}
	s.publish(&Snapshot{defs: before.defs, tables: tables, epoch: before.epoch + 1})
	return true
}

// publish makes a snapshot the latest one and wakes waiters. The caller holds the lock.
func (s *Store) publish(sn *Snapshot) {
	s.current.Store(sn)
	close(s.changed)
	s.changed = make(chan struct{})
}

// installCommit installs the shards that a transaction has written. pairs are its
// results, with the new indexes of the heads.
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
