package store

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// restore takes over what the kv holds when it has gone backwards, because it was
// restored from a snapshot of its own: all tables as they were at one moment. Table
// by table would not do: who saw tasks of then beside assignments of now would
// take tasks that have a node for such that have none.
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
				continue // it is being loaded for the first time
			}
			next, older, err := f.restored(before.tables[i], pairs, found)
			if err != nil {
				return err
			}
			tables[i] = next
			backwards = backwards || older
		}
		if !backwards {
			return nil // another table's follower was here before
		}
		if s.replace(before, tables) {
			s.log.Warn("the kv holds an older state than before: taking it over", zap.Uint64("epoch", before.epoch+1))
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

// restored makes the table of what the kv holds, and reports whether any of it is
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
