package store

import "errors"

var errBadKey = errors.New("a key must have 1 to 512 bytes")

// Tx gives an update function access to the tables. It is valid until the function
// returns, and must be used by one goroutine.
type Tx struct {
	batch  *batch
	number int
	err    error
	undo   []undo
	// touched and wrote are the drafts that this update depends on and has written to.
	touched, wrote []*draft
}

// undo can revert one change.
type undo struct {
	draft *draft
	key   string
	old   *record
}

// fail makes the update return err, regardless of what its function returns.
func (tx *Tx) fail(err error) {
	if tx.err == nil {
		tx.err = err
	}
}

// draft returns the draft of a shard, and records that the update depends on it.
func (tx *Tx) draft(t TableDef, number int) *draft {
	d := tx.batch.draft(t, number)
	if d.touchedBy != tx.number {
		d.touchedBy = tx.number
		tx.touched = append(tx.touched, d)
		tx.batch.guard(d)
	}
	return d
}

func (tx *Tx) get(t TableDef, key string) *record {
	return tx.draft(t, ShardOf(key)).get(key)
}

func (tx *Tx) scan(t TableDef, prefix string, yield func(*record) bool) {
	if oneShard(prefix) {
		tx.draft(t, ShardOf(prefix)).scan(prefix, yield)
		return
	}
	for i := range Shards {
		if !tx.draft(t, i).scan(prefix, yield) {
			return
		}
	}
}

func (tx *Tx) put(t TableDef, key string, raw []byte, value any) {
	d := tx.draft(t, ShardOf(key))
	old := d.get(key)
	if old != nil && old.raw == string(raw) {
		return
	}
	tx.set(d, key, newRecord([]byte(key), raw, d.seq+1, value))
}

func (tx *Tx) delete(t TableDef, key string) {
	d := tx.draft(t, ShardOf(key))
	if d.get(key) != nil {
		tx.set(d, key, nil)
	}
}

func (tx *Tx) set(d *draft, key string, r *record) {
	if d.wroteBy != tx.number {
		d.wroteBy = tx.number
		tx.wrote = append(tx.wrote, d)
		tx.batch.write(d)
	}
	old := d.set(key, r, 1, &tx.batch.cost)
	tx.undo = append(tx.undo, undo{draft: d, key: key, old: old})
}

// accept makes the update part of its batch.
func (tx *Tx) accept() {
	for _, d := range tx.wrote {
		d.seq++
	}
}

// revert undoes the writes of the update. The shards that it has read stay guarded.
func (tx *Tx) revert() {
	for i := len(tx.undo) - 1; i >= 0; i-- {
		u := tx.undo[i]
		u.draft.set(u.key, u.old, -1, &tx.batch.cost)
	}
	for _, d := range tx.wrote {
		tx.batch.unwrite(d)
	}
	tx.undo, tx.wrote = nil, nil
}

// release removes the guards on the shards that the update has read.
func (tx *Tx) release() {
	for _, d := range tx.touched {
		tx.batch.unguard(d)
	}
	tx.touched = nil
}
