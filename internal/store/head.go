package store

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// A head is encoded as
//
//	1                 format
//	uvarint           sequence number
//	uvarint           number of the next new page
//	uvarint           number of writers, then for each, the latest first:
//	  8 bytes           its id
//	  uvarint           number of its last commit to this shard
//	uvarint           number of pages, then for each, in order:
//	  uvarint, uvarint  length of the prefix that its lower bound shares with the former
//	  bytes             one, and length of the rest; the rest
//	  uvarint           its number
//	  uvarint           the shard's sequence number at its last change
//	  4 bytes           CRC-32C of its value
const headFormat = 1

// maxWriters is the number of writers that a head lists. Only the replicas of one daemon
// write a table, so fewer than 8 write to a shard while one of them waits for the outcome
// of its commit.
const maxWriters = 8

// writer identifies a commit that was applied to a shard: the store and its number.
type writer struct {
	id     uint64
	commit uint64
}

// head lists the pages of a shard.
type head struct {
	seq     uint64
	next    uint64
	writers []writer
	pages   []pageRef
}

// pageRef is a head's reference to a page. Number, sequence number and checksum together
// identify the content, even if the kv was restored and sequence numbers were reused.
type pageRef struct {
	low string
	num uint64
	seq uint64
	sum uint32
}

// same reports whether two references are to the same content.
func (p pageRef) same(q pageRef) bool { return p.num == q.num && p.seq == q.seq && p.sum == q.sum }

func (h *head) encode() []byte {
	b := make([]byte, 0, 32+len(h.writers)*12+len(h.pages)*48)
	b = append(b, headFormat)
	b = binary.AppendUvarint(b, h.seq)
	b = binary.AppendUvarint(b, h.next)
	b = binary.AppendUvarint(b, uint64(len(h.writers)))
	for _, w := range h.writers {
		b = binary.BigEndian.AppendUint64(b, w.id)
		b = binary.AppendUvarint(b, w.commit)
	}
	b = binary.AppendUvarint(b, uint64(len(h.pages)))
	low := ""
	for _, p := range h.pages {
		n := shared(low, p.low)
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(p.low)-n))
		b = append(b, p.low[n:]...)
		b = binary.AppendUvarint(b, p.num)
		b = binary.AppendUvarint(b, p.seq)
		b = binary.BigEndian.AppendUint32(b, p.sum)
		low = p.low
	}
	return b
}

func decodeHead(value []byte) (*head, error) {
	r := wireReader{b: value}
	if f := r.byte(); r.err == nil && f != headFormat {
		return nil, fmt.Errorf("head: %w %d", errFormat, f)
	}
	h := &head{seq: r.uvarint(), next: r.uvarint()}
	h.writers = make([]writer, r.count(9))
	for i := range h.writers {
		h.writers[i] = writer{id: r.uint64(), commit: r.uvarint()}
	}
	h.pages = make([]pageRef, r.count(8))
	low := ""
	for i := range h.pages {
		n, rest := r.uvarint(), r.uvarint()
		if n > uint64(len(low)) || rest > MaxKey {
			r.fail(errCorrupt)
			break
		}
		// A bound is a prefix of a key, so MaxKey limits its length.
		suffix := r.bytes(rest)
		next := low[:n] + string(suffix)
		if r.err == nil && (len(next) > MaxKey || (i == 0) != (next == "") || (i > 0 && next <= low)) {
			r.fail(errCorrupt)
		}
		p := pageRef{low: next, num: r.uvarint(), seq: r.uvarint(), sum: r.uint32()}
		if r.err == nil && (p.num >= h.next || p.seq > h.seq) {
			r.fail(errCorrupt)
		}
		if r.err != nil {
			break
		}
		h.pages[i] = p
		low = next
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	return h, nil
}

// wroteLast reports whether this commit was the last one to write the shard.
func (h *head) wroteLast(w writer) bool { return len(h.writers) > 0 && h.writers[0] == w }

// outcome says whether a commit was applied, according to a head that it writes.
type outcome uint8

const (
	outcomeUnknown outcome = iota // too many writers have written since
	outcomeApplied
	outcomeOpen // not applied, unless it was not the latest
)

// outcome looks for a commit among the listed writers. Commits of one writer are
// sequential, so its last commit determines the outcome of the earlier ones.
func (h *head) outcome(w writer) outcome {
	for _, o := range h.writers {
		if o.id == w.id {
			if o.commit == w.commit {
				return outcomeApplied
			}
			return outcomeOpen
		}
	}
	if len(h.writers) < maxWriters {
		return outcomeOpen
	}
	return outcomeUnknown
}

// addWriter puts a commit in front of the list of writers.
func addWriter(writers []writer, w writer) []writer {
	out := make([]writer, 1, min(len(writers)+1, maxWriters))
	out[0] = w
	for _, o := range writers {
		if o.id != w.id && len(out) < maxWriters {
			out = append(out, o)
		}
	}
	return slices.Clip(out)
}
