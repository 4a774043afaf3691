package embedded

import (
	"context"
	"fmt"
	"strings"

	"github.com/musterhq/muster/internal/kv"
)

// Txn applies operations atomically; see kv.KV.
func (s *KV) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("transaction: %w", context.Cause(ctx))
	}
	if err := checkLimits(ops); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	results, written, err := s.apply(ops)
	var durable <-chan error
	if err == nil && len(written) > 0 && s.file != nil {
		durable = s.file.write(s.index, written)
	}
	s.mu.Unlock()
	if err != nil || durable == nil {
		return results, err
	}
	select {
	case err = <-durable:
	case <-ctx.Done():
		return nil, fmt.Errorf("transaction is applied, and its outcome on disk not awaited: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("keep transaction: %w: %w", kv.ErrUnavailable, err)
	}
	return results, nil
}

func checkLimits(ops []kv.Op) error {
	if len(ops) > limits.Ops {
		return fmt.Errorf("transaction of %d operations, of %d allowed: %w", len(ops), limits.Ops, kv.ErrTooLarge)
	}
	size := 0
	for _, op := range ops {
		size += len(op.Value)
	}
	if size > limits.Bytes {
		return fmt.Errorf("transaction of %d bytes, of %d allowed: %w", size, limits.Bytes, kv.ErrTooLarge)
	}
	return nil
}

// write is one key's new pair, or its removal.
type write struct {
	pair    kv.Pair
	removed bool
}

// apply runs a transaction. An operation sees what those before it did.
func (s *KV) apply(ops []kv.Op) ([]kv.Pair, []write, error) {
	var (
		results []kv.Pair
		written []write
		next    = s.index + 1
		undo    []write
	)
	get := func(key string) (kv.Pair, bool) { return s.pairs.Get(key) }
	put := func(p kv.Pair) {
		old, had := s.pairs.Set(p.Key, p)
		old.Key = p.Key
		undo = append(undo, write{old, !had})
		written = append(written, write{pair: p})
	}
	remove := func(key string) {
		if old, had := s.pairs.Delete(key); had {
			undo = append(undo, write{old, false})
			written = append(written, write{kv.Pair{Key: key}, true})
		}
	}
	conflict := func(op kv.Op) error {
		for i := len(undo) - 1; i >= 0; i-- {
			if undo[i].removed {
				s.pairs.Delete(undo[i].pair.Key)
			} else {
				s.pairs.Set(undo[i].pair.Key, undo[i].pair)
			}
		}
		return fmt.Errorf("key %q is not at index %d: %w", op.Key, op.Index, kv.ErrConflict)
	}
	for _, op := range ops {
		old, exists := get(op.Key)
		switch op.Verb {
		case kv.Get:
			if exists {
				results = append(results, copied(old))
			}
		case kv.CAS, kv.DeleteCAS, kv.CheckIndex:
			if old.Index != op.Index {
				return nil, nil, conflict(op)
			}
		}
		switch op.Verb {
		case kv.Set, kv.CAS:
			p := kv.Pair{Key: op.Key, Value: append([]byte(nil), op.Value...), Index: next, Session: old.Session}
			put(p)
			p.Value = nil
			results = append(results, p)
		case kv.Delete, kv.DeleteCAS:
			remove(op.Key)
		}
	}
	if len(written) > 0 {
		s.commit(next, written)
	}
	return results, written, nil
}

// commit moves the index on and wakes whoever waits for one of the keys.
func (s *KV) commit(index uint64, written []write) {
	s.index = index
	for _, w := range written {
		s.recent = append(s.recent, change{index, w.pair.Key})
	}
	if len(s.recent) > 2*recentChanges {
		cut := len(s.recent) - recentChanges
		s.forgotten = s.recent[cut-1].index
		s.recent = append(s.recent[:0], s.recent[cut:]...)
	}
	for x := range s.waiters {
		for _, w := range written {
			if strings.HasPrefix(w.pair.Key, x.prefix) {
				close(x.wake)
				delete(s.waiters, x)
				break
			}
		}
	}
}
