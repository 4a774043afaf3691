package store

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// restore adopts the state of a kv that was restored to an older state. It replaces all
// tables at once: with old tasks beside new assignments, for example, tasks that have a
// node would seem to have none.
func (s *Store) restore(ctx context.Context) error {
	retry := backoff.New(failurePause, maxFailurePause)
	for range maxRounds {
		before := s.Snapshot()
		pairs, _, err := s.kv.List(ctx, s.prefix+"/", kv.ListOptions{})
		if err != nil {
			return fmt.Errorf("list all tables: %w", err)
		}
		found := make(map[string]kv.Pair, len(pairs))
		for _, p := range pairs {
			found[p.Key] = p
		}
		tables := slices.Clone(before.tables)
		backwards := false
		for i, f := range s.tables {
			if tables[i] == nil {
				continue // not loaded yet
			}
			next, older, err := f.restored(before.tables[i], pairs, found)
			if err != nil {
				return err
			}
			tables[i] = next
			backwards = backwards || older
		}
		if !backwards {
			return nil // the follower of another table has restored the state
		}
		if s.replace(before, tables) {
			s.log.Warn("store was restored to an older state", zap.Uint64("epoch", before.epoch+1))
			for _, f := range s.tables {
				f.lag.forget()
				f.restartWatch()
			}
			return nil
		}
		_ = retry.Wait(ctx)
	}
	return errBackwards
}

// restored builds the table from the pairs of the kv, and reports whether a shard is
// older than before.
func (f *follower) restored(before *tableState, pairs []kv.Pair, found map[string]kv.Pair) (_ *tableState, older bool, err error) {
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return nil, false, err
	}
	next := *before
	for i, old := range before.shards {
		if heads[i].index == old.index {
			continue
		}
		older = older || heads[i].index < old.index
		if next.shards[i], err = f.shard(i, heads[i].head, heads[i].index, old, found); err != nil {
			return nil, false, err
		}
	}
	return &next, older, nil
}
