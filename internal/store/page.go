package store

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// A page is encoded as
//
//	1          format
//	uvarint    number of records, then for each, in order of their keys:
//	  uvarint    number of bytes that its key shares with the key of the former record
//	  uvarint    length of the rest of the key
//	  bytes      the rest of the key
//	  uvarint    version
//	  uvarint    length of the value
//	  bytes      the value
const (
	pageFormat = 1
	// pageOverhead is the maximum size of a page without its records.
	pageOverhead = 4
)

// record is a record that snapshots share. It is never changed.
type record struct {
	key     string
	raw     string
	version uint64
	value   any
}

// newRecord returns a record that shares no memory with its key and raw value.
func newRecord(key, raw []byte, version uint64, value any) *record {
	// Key and value share an allocation, but not with other records of the page,
	// which may be freed at other times.
	var b strings.Builder
	b.Grow(len(key) + len(raw))
	b.Write(key)
	b.Write(raw)
	s := b.String()
	return &record{key: s[:len(key)], raw: s[len(key):], version: version, value: value}
}

// size returns the length of the record's encoding after a record with the key before.
func (r *record) size(before string) int {
	n := shared(before, r.key)
	rest := len(r.key) - n
	return uvarintLen(uint64(n)) + uvarintLen(uint64(rest)) + rest +
		uvarintLen(r.version) + uvarintLen(uint64(len(r.raw))) + len(r.raw)
}

// page is a page of a shard. It is never changed.
type page struct {
	pageRef
	recs []*record
	size int // of the encoded page
}

func compareKey(r *record, key string) int { return strings.Compare(r.key, key) }

// find returns the index of a key, or the index where it would be inserted.
func (p *page) find(key string) (int, bool) {
	return slices.BinarySearchFunc(p.recs, key, compareKey)
}

func encodePage(recs []*record, size int) []byte {
	b := make([]byte, 0, size+pageOverhead)
	b = append(b, pageFormat)
	b = binary.AppendUvarint(b, uint64(len(recs)))
	before := ""
	for _, r := range recs {
		n := shared(before, r.key)
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(r.key)-n))
		b = append(b, r.key[n:]...)
		b = binary.AppendUvarint(b, r.version)
		b = binary.AppendUvarint(b, uint64(len(r.raw)))
		b = append(b, r.raw...)
		before = r.key
	}
	return b
}

// recordSource returns already decoded records, sorted by key.
type recordSource interface {
	// advance returns the first record whose key is at least key, or nil.
	advance(key []byte) *record
}

// noRecords is an empty recordSource.
type noRecords struct{}

func (noRecords) advance([]byte) *record { return nil }

// bounds limit a page's records: keys must be at least low, and less than high unless
// high is "". Versions must not exceed seq.
type bounds struct {
	low, high string
	seq       uint64
}

// decodePage decodes a page's records. It takes unchanged records from known, so that they
// are neither decoded nor stored twice.
func decodePage(t TableDef, value []byte, in bounds, known recordSource) ([]*record, error) {
	r := wireReader{b: value}
	if f := r.byte(); r.err == nil && f != pageFormat {
		return nil, fmt.Errorf("page: %w %d", errFormat, f)
	}
	recs := make([]*record, 0, r.count(4))
	var key, before []byte
	for range cap(recs) {
		n, rest := r.uvarint(), r.uvarint()
		if n > uint64(len(before)) || rest > MaxKey {
			r.fail(errCorrupt)
			break
		}
		key = append(append(key[:0], before[:n]...), r.bytes(rest)...)
		version := r.uvarint()
		raw := r.bytes(r.uvarint())
		switch {
		case r.err != nil:
		case len(key) == 0, len(key) > MaxKey, version > in.seq,
			len(recs) > 0 && string(key) <= string(before),
			string(key) < in.low, in.high != "" && string(key) >= in.high:
			r.fail(errCorrupt)
		}
		if r.err != nil {
			break
		}
		rec := known.advance(key)
		if rec == nil || rec.version != version || rec.key != string(key) || rec.raw != string(raw) {
			value, err := t.decode(raw)
			if err != nil {
				return nil, fmt.Errorf("page: record %q: %w", key, err)
			}
			rec = newRecord(key, raw, version, value)
		}
		recs = append(recs, rec)
		key, before = before, key
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return recs, nil
}
