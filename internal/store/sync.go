package store

import (
	"context"
	"fmt"
	"sync"
)

// Sync brings tables up to what the kv holds at some moment after the call: what
// anybody has committed before shows in Snapshot then. The watches do so by
// themselves, but in their own time. Who takes work over from another needs it,
// so as not to rest on less than the other one knew. Calls at the same time share
// what they read. It waits for the tables to have been loaded (see Ready).
func (s *Store) Sync(ctx context.Context, tables ...TableDef) error {
	if err := s.Ready(ctx); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	errs := make([]error, len(tables))
	var wg sync.WaitGroup
	for i, t := range tables {
		f := s.tables[indexOf(s.Snapshot().defs, t)]
		wg.Go(func() { errs[i] = f.sync(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

// sync reads the table, unless a read that began after the call has ended by
// then.
func (f *follower) sync(ctx context.Context) error {
	called := f.readCounter.Add(1)
	select {
	case f.readLock <- struct{}{}:
		defer func() { <-f.readLock }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if f.lastRead > called {
		return nil
	}
	began := f.readCounter.Add(1)
	if err := f.refreshLocked(ctx, nil); err != nil {
		return err
	}
	f.lastRead = began
	return nil
}
