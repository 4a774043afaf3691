package store

import (
	"slices"

	"github.com/musterhq/muster/internal/kv"
)

// piece is a page of the shard that seal builds.
type piece struct {
	base  *page // nil for a new page
	low   string
	recs  []*record
	size  int
	dirty bool
}

// seal returns the shard after the batch, except for its index, and the operations on its
// pages. It splits pages that are too large and removes empty ones. If merge is set, it
// merges underfull pages with a neighbour.
func (d *draft) seal(prefix string, w writer, merge bool) (*shard, []kv.Op) {
	var ops []kv.Op
	remove := func(p *page) {
		if p != nil {
			ops = append(ops, kv.Op{Verb: kv.Delete, Key: pageKey(prefix, d.def, d.shard, p.num)})
		}
	}

	var pieces []piece
	for _, p := range d.pages {
		switch {
		case p.changes == 0 && p.base == nil:
		case p.changes == 0:
			pieces = d.join(pieces, piece{base: p.base, low: p.low, recs: p.recs, size: p.size}, merge, remove)
		case len(p.recs) == 0:
			remove(p.base)
		case p.size <= d.maxPage:
			pieces = d.join(pieces, piece{base: p.base, low: p.low, recs: p.recs, size: p.size, dirty: true}, merge, remove)
		default:
			pieces = append(pieces, split(p, d.maxPage)...)
		}
	}

	next := &shard{seq: d.seq, next: d.base.next, writers: addWriter(d.base.writers, w)}
	next.pages = make([]*page, len(pieces))
	for i, p := range pieces {
		if i == 0 {
			p.low = ""
		}
		switch {
		case !p.dirty && p.low == p.base.low:
			next.pages[i] = p.base
		case !p.dirty:
			moved := *p.base
			moved.low = p.low
			next.pages[i] = &moved
		default:
			np := &page{pageRef: pageRef{low: p.low, seq: d.seq}, recs: p.recs}
			if p.base != nil {
				np.num = p.base.num
			} else {
				np.num = next.next
				next.next++
			}
			value := encodePage(p.recs, p.size)
			np.size, np.sum = len(value), checksum(value)
			next.pages[i] = np
			ops = append(ops, kv.Op{Verb: kv.Set, Key: pageKey(prefix, d.def, d.shard, np.num), Value: value})
		}
	}
	return next, ops
}

// join appends a piece. It merges the piece with the last one if both fit into one page
// and one of them was changed and is underfull.
func (d *draft) join(pieces []piece, p piece, merge bool, remove func(*page)) []piece {
	if len(pieces) == 0 || !merge {
		return append(pieces, p)
	}
	last := &pieces[len(pieces)-1]
	poor := last.dirty && last.size < underfull(d.maxPage) || p.dirty && p.size < underfull(d.maxPage)
	if !poor || last.size+p.size > target(d.maxPage) {
		return append(pieces, p)
	}
	last.recs = slices.Concat(last.recs, p.recs)
	last.size += p.size
	last.dirty = true
	if last.base == nil {
		last.base = p.base
	} else {
		remove(p.base)
	}
	return pieces
}

// split divides a page into pieces of similar size. No piece exceeds maxPage unless it is
// a single record. Within a margin, split cuts where neighbouring keys differ most, so
// that the lower bound in the head is short and related records stay together.
func split(p draftPage, maxPage int) []piece {
	want := p.size / (p.size/target(maxPage) + 1)
	margin := want / 6
	var out []piece
	low := p.low
	for start := 0; start < len(p.recs); {
		size := pageOverhead
		before := ""
		end, endSize, endShared := len(p.recs), 0, -1
		for i := start; i < len(p.recs); i++ {
			r := p.recs[i]
			n := r.size(before)
			if i > start {
				if over := size+n > maxPage; over || size >= want-margin {
					if k := shared(before, r.key); endShared < 0 || k < endShared {
						end, endSize, endShared = i, size, k
					}
					if over || size >= want+margin {
						break
					}
				}
			}
			size += n
			before = r.key
		}
		if endShared < 0 {
			endSize = size
		}
		out = append(out, piece{low: low, recs: slices.Clone(p.recs[start:end]), size: endSize, dirty: true})
		if end < len(p.recs) {
			// The shortest prefix of the key that is greater than the former key.
			low = p.recs[end].key[:endShared+1]
		}
		start = end
	}
	out[0].base = p.base
	return out
}
