package store

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Status says how far a store's snapshot may be behind the kv.
type Status struct {
	// Loaded is set once every table has been read.
	Loaded bool
	// Stale is the time since the last successful call of the kv, or 0 while calls
	// succeed. The snapshot lacks all commits of that time.
	Stale time.Duration
	// Behind is the number of commits that are known to be in the kv and not yet in
	// the snapshot. BehindFor is the time since the first of them was seen.
	Behind    uint64
	BehindFor time.Duration
	// Err says why the store is not loaded or cannot reach the kv.
	Err error
}

// Lag returns for how long the snapshot may have been incomplete.
func (s Status) Lag() time.Duration { return max(s.Stale, s.BehindFor) }

// Status returns how far the snapshot may be behind the kv.
func (s *Store) Status() Status {
	st := Status{Loaded: s.Snapshot().loaded(), Stale: s.health.staleness(), Err: s.health.err()}
	for _, f := range s.tables {
		if state := f.state(); state != nil {
			n, since := f.lag.behind(state)
			st.Behind += n
			if n > 0 {
				st.BehindFor = max(st.BehindFor, time.Since(since))
			}
		}
	}
	return st
}

// WaitAvailable blocks while the kv is known to be unavailable. If ctx ends first, the
// error says why the kv is unavailable. Updates that are made while the kv is available
// are less likely to have an unknown outcome.
func (s *Store) WaitAvailable(ctx context.Context) error {
	for {
		changed, err := s.health.available()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the kv: %w: %w", context.Cause(ctx), err)
		}
	}
}

// AppliedSequences returns the sequence numbers of the shards of each loaded table in
// the latest snapshot.
func (s *Store) AppliedSequences() map[string][]uint64 {
	sn := s.Snapshot()
	out := make(map[string][]uint64, len(s.tables))
	for i, ts := range sn.tables {
		if ts == nil {
			continue
		}
		seqs := make([]uint64, Shards)
		for j, sh := range ts.shards {
			seqs[j] = sh.seq
		}
		out[sn.defs[i].Name()] = seqs
	}
	return out
}

// LeaderSequences reads the sequence numbers of all shards from the leader of the kv.
// AppliedSequences returns the same numbers once the snapshot has caught up.
func (s *Store) LeaderSequences(ctx context.Context) (map[string][]uint64, error) {
	found := make([][]uint64, len(s.tables))
	errs := make([]error, len(s.tables))
	var wg sync.WaitGroup
	for i, f := range s.tables {
		wg.Go(func() {
			heads, err := f.readHeads(ctx, callTimeout)
			if err != nil {
				errs[i] = err
				return
			}
			found[i] = heads.sequences()
		})
	}
	wg.Wait()
	out := make(map[string][]uint64, len(s.tables))
	for i, f := range s.tables {
		if errs[i] != nil {
			return nil, errs[i]
		}
		out[f.def.Name()] = found[i]
	}
	return out, nil
}

func (h *tableHeads) sequences() []uint64 {
	seqs := make([]uint64, Shards)
	for i := range h {
		seqs[i] = h[i].seq
	}
	return seqs
}

// lag tracks the highest sequence numbers that were seen in a table's heads.
type lag struct {
	mu    sync.Mutex
	known [Shards]uint64
	// since is when the first commit was seen that the snapshot still lacks.
	since time.Time
}

// note records the heads, and the state of the snapshot at that time.
func (l *lag) note(heads *tableHeads, state *tableState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	caughtUp := l.count(state) == 0
	for i := range heads {
		l.known[i] = max(l.known[i], heads[i].seq)
	}
	if caughtUp {
		l.since = time.Now()
	}
}

// forget resets the lag after the kv was restored to an older state.
func (l *lag) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = [Shards]uint64{}
}

// behind returns how many commits a state lacks, and since when.
func (l *lag) behind(state *tableState) (uint64, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count(state), l.since
}

func (l *lag) count(state *tableState) (n uint64) {
	for i, sh := range state.shards {
		if l.known[i] > sh.seq {
			n += l.known[i] - sh.seq
		}
	}
	return n
}
