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
	// probePeriod is the time between two probes.
	probePeriod = 2 * time.Second
	// probeTimeout is how long a probe may take until the kv counts as unavailable.
	probeTimeout = 2 * time.Second
	// probeRetry is the time between two probes while the kv is unavailable.
	probeRetry = 500 * time.Millisecond
	// watchGrace is how long a watch may take to show a change that a probe has found.
	watchGrace = time.Second
)

// probe checks until ctx ends whether the kv answers and the watches are up to date. A
// watch without events cannot tell whether nothing happens, the kv hangs, or its server
// has lost its leader. So probe reads the heads of one table after another from the
// leader, and those of tables that share a watch in groups. If a watch has missed a
// change, probe makes the table be read without it.
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

// readHeads reads the table's heads from the leader of the kv.
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

// verify brings the snapshot up to the heads unless the watch does so in time. before
// is the state of the snapshot when the heads were read.
func (f *follower) verify(ctx context.Context, before *tableState, heads *tableHeads) {
	if before == nil {
		return // it is being loaded
	}
	for i, sh := range before.shards {
		if heads[i].index < sh.index {
			// The kv was restored between two lists, so the second waits for an
			// index that the kv reaches much later.
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
	f.s.log.Warn("watch missed a change; reading table", zap.String("table", f.def.Name()))
	if err := f.refresh(ctx, heads); err != nil && ctx.Err() == nil {
		f.s.log.Warn("failed to read table", zap.String("table", f.def.Name()), zap.Error(err))
	}
}
