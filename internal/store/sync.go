package store

import (
	"context"
	"fmt"
	"sync"
)

// Sync reads tables from the kv. Afterwards, Snapshot shows every update that any store
// had committed before the call. Watches show them too, but later. A replica that takes
// work over must call Sync, so that it knows at least as much as its predecessor.
// Concurrent calls share reads. Sync waits until the tables have been loaded.
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

// sync reads the table, unless another read that began after the call has succeeded.
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
