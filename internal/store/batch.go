package store

import (
	"fmt"

	"github.com/musterhq/muster/internal/kv"
)

// batch holds the updates that are committed in one transaction. Their functions run
// one after another, and each sees the writes of the former ones.
type batch struct {
	base    *Snapshot
	maxPage int
	limits  kv.Limits
	drafts  [][]*draft // by table and shard
	order   []*draft   // in order of first use
	cost    cost
	members []member
	runs    int
}

// member is an update in a batch, with the error that its function returned.
type member struct {
	req *request
	err error
}

func newBatch(s *Store) *batch {
	base := s.Snapshot()
	return &batch{base: base, maxPage: s.maxPage, limits: s.kv.Limits(), drafts: make([][]*draft, len(base.defs))}
}

func (b *batch) draft(t TableDef, number int) *draft {
	i := indexOf(b.base.defs, t)
	if b.drafts[i] == nil {
		b.drafts[i] = make([]*draft, Shards)
	}
	d := b.drafts[i][number]
	if d == nil {
		d = newDraft(t, i, number, b.base.table(t).shards[number], b.maxPage)
		b.drafts[i][number] = d
		b.order = append(b.order, d)
	}
	return d
}

func (b *batch) guard(d *draft) {
	if d.guards++; d.guards == 1 {
		b.cost.ops++
	}
}

func (b *batch) unguard(d *draft) {
	if d.guards--; d.guards == 0 {
		b.cost.ops--
	}
}

func (b *batch) write(d *draft) {
	if d.writers++; d.writers == 1 {
		b.cost.bytes += d.base.headSize()
		if d.def.rarelyWritten() {
			b.cost.ops++
			b.cost.bytes += maxMark
		}
	}
}

func (b *batch) unwrite(d *draft) {
	if d.writers--; d.writers == 0 {
		b.cost.bytes -= d.base.headSize()
		if d.def.rarelyWritten() {
			b.cost.ops--
			b.cost.bytes -= maxMark
		}
	}
}

// fits reports whether the estimated cost is within the limits of a transaction.
func (b *batch) fits() bool {
	return b.cost.ops <= b.limits.Ops && b.cost.bytes <= b.limits.Bytes
}

// tooHeavy reports whether the estimated cost of a heavy update exceeds what is left of
// the transaction.
func (b *batch) tooHeavy(req *request) bool {
	w := req.weight()
	return len(b.members) > 0 && (b.cost.ops+w.ops > b.limits.Ops || b.cost.bytes+w.bytes > b.limits.Bytes)
}

// run runs an update's function and makes the update a member. If it does not fit into
// the transaction, run undoes its effects and reports false. The first member always
// fits, because sealing the batch checks the limits.
func (b *batch) run(req *request) bool {
	tx := &Tx{batch: b, number: b.runs}
	b.runs++
	before := b.cost
	err := req.fn(tx)
	if tx.err != nil {
		err = tx.err
	}
	// Using a Tx after its function has returned is a bug, and panics.
	defer func() { tx.batch = nil }()
	if err != nil {
		tx.revert()
	} else if len(tx.undo) == 0 {
		// The update writes nothing, so its reads need not be checked.
		tx.release()
	}
	if len(tx.undo) > 0 {
		u := tx.undo[0]
		req.firstWrite = location{table: u.draft.table, shard: u.draft.shard, key: u.key}
		req.weigh(len(tx.undo), cost{ops: b.cost.ops - before.ops, bytes: b.cost.bytes - before.bytes})
	}
	if !b.fits() && len(b.members) > 0 {
		tx.revert()
		tx.release()
		return false
	}
	tx.accept()
	b.members = append(b.members, member{req: req, err: err})
	return true
}

// plan is a batch as a transaction.
type plan struct {
	ops    []kv.Op
	bytes  int
	shards []plannedShard
	tables map[int]struct{}
	writes bool
}

// plannedShard is the state of a shard after the transaction, except for its index.
type plannedShard struct {
	table, shard int
	key          string // of its head
	base         *shard
	next         *shard // nil if the shard is only checked
}

// seal turns the batch into a transaction. Heads come first, so that the kv finds a
// conflict before it handles the pages.
func (b *batch) seal(prefix string, w writer, merge bool) *plan {
	p := &plan{tables: map[int]struct{}{}}
	var pages []kv.Op
	marked := map[int]struct{}{}
	for _, d := range b.order {
		if d.guards == 0 {
			continue
		}
		p.tables[d.table] = struct{}{}
		ps := plannedShard{table: d.table, shard: d.shard, key: headKey(prefix, d.def, d.shard), base: d.base}
		if d.writers == 0 {
			p.ops = append(p.ops, kv.Op{Verb: kv.CheckIndex, Key: ps.key, Index: d.base.index})
		} else {
			var ops []kv.Op
			ps.next, ops = d.seal(prefix, w, merge)
			value := ps.next.head().encode()
			p.ops = append(p.ops, kv.Op{Verb: kv.CAS, Key: ps.key, Index: d.base.index, Value: value})
			p.bytes += len(value)
			p.writes = true
			if _, done := marked[d.table]; !done && d.def.rarelyWritten() {
				marked[d.table] = struct{}{}
				ops = append(ops, mark(prefix, d.def, w))
			}
			for _, op := range ops {
				p.bytes += len(op.Value)
			}
			pages = append(pages, ops...)
		}
		p.shards = append(p.shards, ps)
	}
	p.ops = append(p.ops, pages...)
	return p
}

// check returns an error if the transaction exceeds the limits.
func (p *plan) check(l kv.Limits) error {
	if len(p.ops) <= l.Ops && p.bytes <= l.Bytes {
		return nil
	}
	return fmt.Errorf("%d operations of %d, %d bytes of %d: %w", len(p.ops), l.Ops, p.bytes, l.Bytes, kv.ErrTooLarge)
}
