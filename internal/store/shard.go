package store

import (
	"slices"
	"strings"
)

// shard is the state of a shard after a commit. It is never changed.
type shard struct {
	index   uint64 // of the head in the kv; 0 if there is none yet
	seq     uint64
	next    uint64
	writers []writer
	pages   []*page
}

// tableState is the state of a table. It is never changed.
type tableState struct {
	shards [Shards]*shard
}

// newTableState returns a table of empty shards.
func newTableState() *tableState {
	ts := &tableState{}
	empty := &shard{}
	for i := range ts.shards {
		ts.shards[i] = empty
	}
	return ts
}

func (sh *shard) head() *head {
	h := &head{seq: sh.seq, next: sh.next, writers: sh.writers, pages: make([]pageRef, len(sh.pages))}
	for i, p := range sh.pages {
		h.pages[i] = p.pageRef
	}
	return h
}

// headSize returns an upper estimate of the size of the encoded head.
func (sh *shard) headSize() int {
	n := 32 + maxWriters*13
	for _, p := range sh.pages {
		n += len(p.low) + 24
	}
	return n
}

// locate returns the index of the page whose range includes key, or -1 if there is none.
func (sh *shard) locate(key string) int {
	i, ok := slices.BinarySearchFunc(sh.pages, key, func(p *page, key string) int {
		return strings.Compare(p.low, key)
	})
	if ok {
		return i
	}
	return i - 1
}

// seek returns the position of the first record whose key is at least key.
func (sh *shard) seek(key string) cursor {
	c := cursor{sh: sh, page: max(sh.locate(key), 0)}
	if c.page < len(sh.pages) {
		c.rec, _ = sh.pages[c.page].find(key)
	}
	c.settle()
	return c
}

func (sh *shard) get(key string) *record {
	i := sh.locate(key)
	if i < 0 {
		return nil
	}
	p := sh.pages[i]
	if j, ok := p.find(key); ok {
		return p.recs[j]
	}
	return nil
}

// scan yields the records whose keys start with prefix. It reports false if yield did.
func (sh *shard) scan(prefix string, yield func(*record) bool) bool {
	for c := sh.seek(prefix); c.ok(); c.step() {
		r := c.record()
		if !strings.HasPrefix(r.key, prefix) {
			break
		}
		if !yield(r) {
			return false
		}
	}
	return true
}

// page returns the shard's page with the content of ref, or nil.
func (sh *shard) page(ref pageRef) *page {
	// Nearly always, the page with the same lower bound has this content.
	if i := sh.locate(ref.low); i >= 0 && sh.pages[i].same(ref) {
		return sh.pages[i]
	}
	for _, p := range sh.pages {
		if p.same(ref) {
			return p
		}
	}
	return nil
}

// cursor is a position among the records of a shard.
type cursor struct {
	sh        *shard
	page, rec int
}

// settle moves from the end of a page to the start of the next page.
func (c *cursor) settle() {
	for c.page < len(c.sh.pages) && c.rec >= len(c.sh.pages[c.page].recs) {
		c.page, c.rec = c.page+1, 0
	}
}

func (c *cursor) ok() bool        { return c.page < len(c.sh.pages) }
func (c *cursor) record() *record { return c.sh.pages[c.page].recs[c.rec] }

func (c *cursor) step() {
	c.rec++
	c.settle()
}

// advance implements recordSource.
func (c *cursor) advance(key []byte) *record {
	for c.ok() && c.record().key < string(key) {
		c.step()
	}
	if !c.ok() {
		return nil
	}
	return c.record()
}
