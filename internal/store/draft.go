package store

import (
	"slices"
	"strings"
)

// cost is an estimate of a transaction's operations and bytes before its pages are split
// and encoded.
type cost struct {
	ops, bytes int
}

func (c *cost) add(d cost, sign int) {
	c.ops += sign * d.ops
	c.bytes += sign * d.bytes
}

// draft is a shard that a batch changes. Its pages keep their key ranges until the batch
// is sealed.
type draft struct {
	def     TableDef
	table   int
	shard   int
	base    *shard
	maxPage int
	pages   []draftPage
	// seq is the sequence number of the last accepted update.
	seq uint64
	// guards counts the updates of the batch that depend on the shard, writers those that
	// have written to it.
	guards, writers int
	// touchedBy and wroteBy are the numbers of the last updates that used the shard and
	// wrote to it.
	touchedBy, wroteBy int
	// generation increases with each change, so that scans notice it.
	generation int
}

// draftPage is a page of a draft.
type draftPage struct {
	base    *page // nil for the first page of an empty shard
	low     string
	recs    []*record // the records of base until the first change
	size    int
	changes int
}

func newDraft(def TableDef, table, number int, base *shard, maxPage int) *draft {
	d := &draft{
		def: def, table: table, shard: number, base: base, maxPage: maxPage, seq: base.seq,
		pages: make([]draftPage, max(len(base.pages), 1)), touchedBy: -1, wroteBy: -1,
	}
	d.pages[0].size = pageOverhead
	for i, p := range base.pages {
		d.pages[i] = draftPage{base: p, low: p.low, recs: p.recs, size: p.size}
	}
	return d
}

// target is the size of pages after splitting or merging. It leaves room for more records
// before the next split.
func target(maxPage int) int { return maxPage * 3 / 4 }

// underfull is the size below which a page is merged with a neighbour.
func underfull(maxPage int) int { return maxPage / 4 }

// cost returns what the page adds to the transaction. It is an upper bound unless a record
// is larger than a page. alone is set if the shard has no other page.
func (p *draftPage) cost(maxPage int, alone bool) cost {
	switch {
	case p.changes == 0:
		return cost{}
	case p.size < underfull(maxPage) && p.base != nil && !alone:
		// The page may be merged with a neighbour, whose page is then removed.
		return cost{ops: 2, bytes: p.size + target(maxPage)}
	case p.size <= maxPage:
		return cost{ops: 1, bytes: p.size}
	default:
		return cost{ops: 2 + p.size/target(maxPage), bytes: p.size + p.size/16}
	}
}

func (d *draft) locate(key string) int {
	i, ok := slices.BinarySearchFunc(d.pages, key, func(p draftPage, key string) int {
		return strings.Compare(p.low, key)
	})
	if ok {
		return i
	}
	return i - 1 // the first page's bound is "", so there is one
}

func (p *draftPage) find(key string) (int, bool) {
	return slices.BinarySearchFunc(p.recs, key, compareKey)
}

func (d *draft) get(key string) *record {
	p := &d.pages[d.locate(key)]
	if i, ok := p.find(key); ok {
		return p.recs[i]
	}
	return nil
}

// scan yields the records whose keys start with prefix. It reports false if yield did. The
// draft may change during the scan, which then shows the current records.
func (d *draft) scan(prefix string, yield func(*record) bool) bool {
	page := d.locate(prefix)
	rec, _ := d.pages[page].find(prefix)
	for page < len(d.pages) {
		if rec >= len(d.pages[page].recs) {
			page, rec = page+1, 0
			continue
		}
		r := d.pages[page].recs[rec]
		if !strings.HasPrefix(r.key, prefix) {
			break
		}
		generation := d.generation
		if !yield(r) {
			return false
		}
		rec++
		if d.generation != generation {
			var found bool
			if rec, found = d.pages[page].find(r.key); found {
				rec++
			}
		}
	}
	return true
}

// set replaces the record with this key by r, or removes it if r is nil, and returns the
// old record. by is 1 for a change and -1 for undoing one. set updates total.
func (d *draft) set(key string, r *record, by int, total *cost) *record {
	p := &d.pages[d.locate(key)]
	i, found := p.find(key)
	if !found && r == nil {
		return nil
	}
	total.add(p.cost(d.maxPage, len(d.pages) == 1), -1)
	if p.changes == 0 {
		recs := make([]*record, len(p.recs), len(p.recs)+8)
		copy(recs, p.recs)
		p.recs = recs
	}
	d.generation++
	p.changes += by

	var old *record
	before := ""
	if i > 0 {
		before = p.recs[i-1].key
	}
	if found {
		old = p.recs[i]
		p.size -= old.size(before)
	}
	rest := p.recs[i:]
	if found {
		rest = rest[1:]
	}
	if len(rest) > 0 {
		// The key before the next record is different now, and so is its encoding.
		was, is := before, before
		if found {
			was = old.key
		}
		if r != nil {
			is = r.key
		}
		if was != is {
			p.size += rest[0].size(is) - rest[0].size(was)
		}
	}
	switch {
	case r == nil:
		p.recs = slices.Delete(p.recs, i, i+1)
	case found:
		p.recs[i] = r
		p.size += r.size(before)
	default:
		p.recs = slices.Insert(p.recs, i, r)
		p.size += r.size(before)
	}
	if p.changes == 0 && p.base != nil {
		p.recs, p.size = p.base.recs, p.base.size
	}
	total.add(p.cost(d.maxPage, len(d.pages) == 1), 1)
	return old
}
