package store

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

const (
	// probePeriod is how often the kv is asked for a sign of life.
	probePeriod = 2 * time.Second
	// probeTimeout is how long it may take to answer. It is away if it takes
	// longer.
	probeTimeout = 2 * time.Second
	// probeRetry is the time between two questions to a kv that is away.
	probeRetry = 500 * time.Millisecond
	// watchGrace is how long a watch may take to show what a probe has found.
	watchGrace = time.Second
)

// probe feels whether the kv is there, until ctx ends. A watch alone does not
// tell: one that nothing comes from looks the same whether nothing happens, the
// kv hangs, or its server has lost its leader and answers from memory. So the
// heads of one table after another are read as the leader has them, and those of the
// tables that share a watch in groups; and a watch
// that has failed to show what is found there is helped on.
func (s *Store) probe(ctx context.Context) {
	for turn := 0; len(s.tables) > 0; turn++ {
		f := s.tables[turn%len(s.tables)]
		before := f.state()
		heads, err := f.readHeads(ctx, probeTimeout)
		if ctx.Err() != nil {
			return
		}
		s.logAvailability(s.health.reportProbe(err, time.Now()), err)
		wait := probeRetry
		if err == nil {
			f.verify(ctx, before, heads)
			wait = probePeriod
			if err := s.probeMarked(ctx, turn); err != nil && ctx.Err() == nil {
				s.log.Debug("failed to read heads of marked tables", zap.Error(err))
			}
		}
		if backoff.Sleep(ctx, wait) != nil {
			return
		}
	}
}

// readHeads reads the table's heads as the kv's leader has them.
func (f *follower) readHeads(ctx context.Context, timeout time.Duration) (*tableHeads, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v: %w", timeout, kv.ErrUnavailable))
	defer cancel()
	pairs, _, err := f.s.kv.List(ctx, f.heads, kv.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("read heads of table %s: %w", f.def.Name(), err)
	}
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return nil, fmt.Errorf("read heads of table %s: %w", f.def.Name(), err)
	}
	return heads, nil
}

// verify sees to it that the snapshot comes up to these heads, which were read
// when it was as before.
func (f *follower) verify(ctx context.Context, before *tableState, heads *tableHeads) {
	if before == nil {
		return // it is being loaded
	}
	for i, sh := range before.shards {
		if heads[i].index < sh.index {
			// The kv was restored between two lists, and the second waits in vain.
			f.restartWatch()
			return
		}
	}
	f.lag.note(heads, f.state())
	if !f.differs(heads, false) {
		return
	}
	if backoff.Sleep(ctx, watchGrace) != nil || !f.differs(heads, false) {
		return
	}
	f.s.log.Warn("watch of a table is behind: table is read without it", zap.String("table", f.def.Name()))
	if err := f.refresh(ctx, heads); err != nil && ctx.Err() == nil {
		f.s.log.Warn("table cannot be read", zap.String("table", f.def.Name()), zap.Error(err))
	}
}
