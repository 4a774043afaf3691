package embedded

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/musterhq/muster/internal/kv"
)

// Txn applies operations atomically; see kv.KV.
func (s *KV) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if err := limits.Check(ops); err != nil {
		return nil, err
	}
	ops = slices.Clone(ops)
	for i := range ops {
		ops[i].Value = append([]byte(nil), ops[i].Value...)
	}
	var results []kv.Pair
	err := s.do(ctx, func() (err error) {
		results, err = s.apply(ops)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("transaction: %w", err)
	}
	for i := range results {
		results[i] = copied(results[i])
	}
	return results, nil
}

// write is the new pair of a key, or its removal.
type write struct {
	pair    kv.Pair
	removed bool
}

// apply runs a transaction. Each operation sees the effects of the former ones.
func (s *KV) apply(ops []kv.Op) ([]kv.Pair, error) {
	var results []kv.Pair
	change := s.begin()
	for _, op := range ops {
		old, exists := s.pairs.Get(op.Key)
		if !holds(op, old, exists) {
			change.undo()
			return nil, fmt.Errorf("key %q is at index %d, not %d: %w", op.Key, old.Index, op.Index, kv.ErrConflict)
		}
		switch op.Verb {
		case kv.Get:
			if exists {
				results = append(results, old)
			}
		case kv.Set, kv.CAS:
			p := change.put(kv.Pair{Key: op.Key, Value: op.Value, Session: old.Session})
			p.Value = nil
			results = append(results, p)
		case kv.Delete, kv.DeleteCAS:
			change.remove(op.Key)
		}
	}
	change.commit()
	return results, nil
}

// holds reports whether an operation's check succeeds for the present pair.
func holds(op kv.Op, old kv.Pair, exists bool) bool {
	switch op.Verb {
	case kv.CAS, kv.CheckIndex:
		return old.Index == op.Index // a pair that does not exist has 0
	case kv.DeleteCAS:
		return !exists || old.Index == op.Index
	}
	return true
}

// changes are writes of one index, made while holding KV.mu. They take effect at once, and
// are committed or undone together.
type changes struct {
	kv      *KV
	index   uint64
	written []write
	before  []write // former pairs, to undo the writes in reverse order
}

func (s *KV) begin() *changes { return &changes{kv: s, index: s.index + 1} }

// put writes a pair, and returns it with its index. As in Consul, writing the present
// value is not a change.
func (c *changes) put(p kv.Pair) kv.Pair {
	p.Index = c.index
	old, had := c.kv.pairs.Get(p.Key)
	if had && old.Session == p.Session && bytes.Equal(old.Value, p.Value) {
		return old
	}
	c.kv.pairs.Set(p.Key, p)
	old.Key = p.Key
	c.before = append(c.before, write{old, !had})
	c.written = append(c.written, write{pair: p})
	return p
}

func (c *changes) remove(key string) {
	if old, had := c.kv.pairs.Delete(key); had {
		c.before = append(c.before, write{pair: old})
		c.written = append(c.written, write{kv.Pair{Key: key}, true})
	}
}

func (c *changes) undo() {
	for _, w := range slices.Backward(c.before) {
		if w.removed {
			c.kv.pairs.Delete(w.pair.Key)
		} else {
			c.kv.pairs.Set(w.pair.Key, w.pair)
		}
	}
}

// commit increments the index, wakes the lists that wait for one of the keys, and
// queues the writes for the disk.
func (c *changes) commit() {
	if len(c.written) == 0 {
		return
	}
	c.kv.index = c.index
	c.kv.watch.note(c.index, c.written)
	if c.kv.file != nil {
		c.kv.file.queue(batch{c.index, c.written})
	}
}
