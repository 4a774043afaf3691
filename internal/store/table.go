package store

import (
	"fmt"
	"iter"
	"strings"
)

// Shards is the number of shards of every table.
const Shards = 16

// MaxKey is the maximum length of a record's key, in bytes.
const MaxKey = 512

// ShardOf returns the shard of a key: a hash of the key's first segment. It is part of
// the storage format and must never change.
func ShardOf(key string) int {
	segment, _, _ := strings.Cut(key, "/")
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(segment); i++ {
		h = (h ^ uint32(segment[i])) * 16777619
	}
	return int((h ^ h>>16) % Shards)
}

// TableDef is a table without the type of its values. *Table is the only
// implementation outside of tests.
type TableDef interface {
	// Name returns the table's name, which is part of its keys.
	Name() string

	decode(raw []byte) (any, error)
	// rarelyWritten reports whether commits to the table write its mark.
	rarelyWritten() bool
}

// Table is a handle of a table with values of type T. It holds no data, and any number
// of stores may share it.
type Table[T any] struct {
	name  string
	codec Codec[T]
	rare  bool
}

var _ TableDef = (*Table[string])(nil)

// NewTable returns a handle of the table with this name.
func NewTable[T any](name string, codec Codec[T]) *Table[T] {
	return &Table[T]{name: name, codec: codec}
}

// RarelyWritten makes a store use one watch for all such tables, and returns the table.
// It saves connections, because each watch occupies a connection to Consul, which limits
// them. In return, changes are seen one round trip later, and each commit needs one more
// operation. Either all processes that write the table must call it, or none.
func (t *Table[T]) RarelyWritten() *Table[T] {
	t.rare = true
	return t
}

func (t *Table[T]) rarelyWritten() bool { return t.rare }

// Entry is a record: its key, version and value. All readers in a process share the
// value, so it must not be changed.
type Entry[T any] struct {
	Key     string
	Version uint64
	Value   T
}

// Reader reads tables: it is a *Snapshot or a *Tx. Reading a table that the store was not
// opened with panics.
type Reader interface {
	get(t TableDef, key string) *record
	scan(t TableDef, prefix string, yield func(*record) bool)
}

var (
	_ Reader = (*Snapshot)(nil)
	_ Reader = (*Tx)(nil)
)

// Name returns the table's name.
func (t *Table[T]) Name() string { return t.name }

// Get returns the record with this key.
func (t *Table[T]) Get(r Reader, key string) (Entry[T], bool) {
	rec := r.get(t, key)
	if rec == nil {
		return Entry[T]{}, false
	}
	return entry[T](rec), true
}

// Scan returns the records whose keys start with prefix. A prefix with a complete first
// segment ("a/") selects one shard, whose records are sorted by key. Any other prefix
// reads all shards one after another, so only the records of each shard are sorted.
//
// In a Tx, a scan sees the writes of the update, and the update may write during a scan.
func (t *Table[T]) Scan(r Reader, prefix string) iter.Seq[Entry[T]] {
	return func(yield func(Entry[T]) bool) {
		r.scan(t, prefix, func(rec *record) bool { return yield(entry[T](rec)) })
	}
}

// Put writes a record. If the stored record has the same bytes, it stays unchanged,
// including its version. A key must have 1 to MaxKey bytes. Update returns the error of
// an invalid key or value. Readers in this process get v itself, so it must not be
// changed afterwards.
func (t *Table[T]) Put(tx *Tx, key string, v T) {
	if key == "" || len(key) > MaxKey {
		tx.fail(fmt.Errorf("table %s: %w: it has %d bytes", t.name, errBadKey, len(key)))
		return
	}
	raw, err := t.codec.Encode(v)
	if err != nil {
		tx.fail(fmt.Errorf("table %s: put %q: %w", t.name, key, err))
		return
	}
	tx.put(t, key, raw, v)
}

// Delete removes a record if it exists.
func (t *Table[T]) Delete(tx *Tx, key string) { tx.delete(t, key) }

// Sequences returns the sequence number of each shard. A record was written after an
// earlier snapshot exactly if its version is greater than its shard's number in that
// snapshot.
func (t *Table[T]) Sequences(sn *Snapshot) []uint64 {
	out := make([]uint64, Shards)
	for i, sh := range sn.table(t).shards {
		out[i] = sh.seq
	}
	return out
}

func (t *Table[T]) decode(raw []byte) (any, error) { return t.codec.Decode(raw) }

func entry[T any](r *record) Entry[T] {
	return Entry[T]{Key: r.key, Version: r.version, Value: r.value.(T)}
}

// oneShard reports whether all keys with this prefix belong to one shard.
func oneShard(prefix string) bool { return strings.Contains(prefix, "/") }
