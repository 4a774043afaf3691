package store

import "iter"

// Change is a difference between two snapshots: a record that was created (Old
// is nil), removed (New is nil) or changed.
type Change[T any] struct {
	Old, New *Entry[T]
}

// Key returns the key of the record.
func (c Change[T]) Key() string {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}

// Changes returns the differences between two snapshots, sorted by key within each shard.
// A nil from is empty. A record that changed several times is one change. The cost is
// proportional to the size of the pages that differ.
func (t *Table[T]) Changes(from, to *Snapshot) iter.Seq[Change[T]] {
	return func(yield func(Change[T]) bool) {
		a, b := emptyTable, to.table(t)
		if from != nil {
			a = from.table(t)
		}
		if a == b {
			return
		}
		for i := range b.shards {
			if a.shards[i] == b.shards[i] {
				continue
			}
			if !compareShards(a.shards[i], b.shards[i], func(old, new *record) bool {
				return yield(Change[T]{Old: entryPointer[T](old), New: entryPointer[T](new)})
			}) {
				return
			}
		}
	}
}

func entryPointer[T any](r *record) *Entry[T] {
	if r == nil {
		return nil
	}
	e := entry[T](r)
	return &e
}

// compareShards walks through two states of a shard in parallel, and skips the pages that
// they share.
func compareShards(from, to *shard, yield func(old, new *record) bool) bool {
	a, b := from.seek(""), to.seek("")
	for a.ok() || b.ok() {
		if a.ok() && b.ok() && a.rec == 0 && b.rec == 0 && from.pages[a.page] == to.pages[b.page] {
			a.page++
			b.page++
			a.settle()
			b.settle()
			continue
		}
		var old, new *record
		if a.ok() {
			old = a.record()
		}
		if b.ok() {
			new = b.record()
		}
		if old == new {
			// Changed pages share their unchanged records too.
			a.step()
			b.step()
			continue
		}
		switch {
		case old != nil && new != nil && old.key < new.key:
			new = nil
		case old != nil && new != nil && old.key > new.key:
			old = nil
		}
		if old != nil {
			a.step()
		}
		if new != nil {
			b.step()
		}
		if old != nil && new != nil && old.version == new.version && old.raw == new.raw {
			continue
		}
		if !yield(old, new) {
			return false
		}
	}
	return true
}
