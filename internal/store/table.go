package store

import (
	"fmt"
	"iter"
	"strings"
)

// Shards is the number of shards of every table.
const Shards = 16

// MaxKey is the greatest length of a record's key, in bytes.
const MaxKey = 512

// ShardOf returns the shard that a key's record lives in: a hash of the key's
// first segment. It is part of the format of what is stored, and never changes.
func ShardOf(key string) int {
	segment, _, _ := strings.Cut(key, "/")
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(segment); i++ {
		h = (h ^ uint32(segment[i])) * 16777619
	}
	return int((h ^ h>>16) % Shards)
}

// TableDef is a table without the type of its values. *Table is the only one.
type TableDef interface {
	// Name is the table's name, and its place under the store's prefix.
	Name() string

	decode(raw []byte) (any, error)
	// rarelyWritten says that commits to the table write its mark.
	rarelyWritten() bool
}

// Table is a handle of a table with values of type T. It holds no data and may
// be shared by any number of stores.
type Table[T any] struct {
	name  string
	codec Codec[T]
	rare  bool
}

var _ TableDef = (*Table[string])(nil)

// NewTable returns the handle of the table of that name.
func NewTable[T any](name string, codec Codec[T]) *Table[T] {
	return &Table[T]{name: name, codec: codec}
}

// RarelyWritten makes all stores share one watch for this table and others of its
// kind, and returns the table. A change shows one round trip later, and costs one
// more operation. Each blocking watch takes a connection of Consul's, which allows
// few. Either all processes that write the table call it, or none.
func (t *Table[T]) RarelyWritten() *Table[T] {
	t.rare = true
	return t
}

func (t *Table[T]) rarelyWritten() bool { return t.rare }

// Entry is a record: its key, its version and its value. The value is decoded
// once in a process and shared by all who read it: it must not be changed.
type Entry[T any] struct {
	Key     string
	Version uint64
	Value   T
}

// Reader is what tables are read from: a *Snapshot or a *Tx. Reading a table
// that the store was not opened with is a mistake in the program, and panics.
type Reader interface {
	get(t TableDef, key string) *record
	scan(t TableDef, prefix string, yield func(*record) bool)
}

var (
	_ Reader = (*Snapshot)(nil)
	_ Reader = (*Tx)(nil)
)

// Name is the table's name.
func (t *Table[T]) Name() string { return t.name }

// Get returns the record with that key.
func (t *Table[T]) Get(r Reader, key string) (Entry[T], bool) {
	rec := r.get(t, key)
	if rec == nil {
		return Entry[T]{}, false
	}
	return entry[T](rec), true
}

// Scan returns the records whose keys start with prefix, in order of their keys
// within a shard. A prefix that holds a whole first segment ("a/") reads one
// shard; any other one reads all shards, one after another, so that its records
// are not in one order.
//
// In a Tx, a scan shows what the update itself writes, and the update may write
// while it scans.
func (t *Table[T]) Scan(r Reader, prefix string) iter.Seq[Entry[T]] {
	return func(yield func(Entry[T]) bool) {
		r.scan(t, prefix, func(rec *record) bool { return yield(entry[T](rec)) })
	}
}

// Put writes a record. If it is there with the same bytes, nothing is changed,
// and its version stays. A key is 1 to MaxKey bytes long. What is wrong with a
// key or a value is returned by the Update. The value is what readers in this
// process are given: it must not be changed from then on.
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

// Delete removes a record if it is there.
func (t *Table[T]) Delete(tx *Tx, key string) { tx.delete(t, key) }

// Sequences returns the sequence number of each shard. A record's version is
// greater than the number of its shard in an earlier snapshot exactly if it was
// written since.
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

// oneShard reports whether all keys with that prefix lie in one shard.
func oneShard(prefix string) bool { return strings.Contains(prefix, "/") }
