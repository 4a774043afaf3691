package store

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Status says how far what a store shows can be behind what the kv holds.
type Status struct {
	// Loaded says that every table has been read once.
	Loaded bool
	// Stale is how long ago the last contact with the kv was; 0 while there is
	// contact. Whatever was committed since is not in the view.
	Stale time.Duration
	// Behind counts the commits that are known to be in the kv and are not in the
	// view yet, and BehindFor is how long the first of them has been known.
	Behind    uint64
	BehindFor time.Duration
	// Err is what keeps the store from being loaded or in contact.
	Err error
}

// Lag is for how long the view may have lacked something.
func (s Status) Lag() time.Duration { return max(s.Stale, s.BehindFor) }

// Status tells how the store stands to its kv.
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

// WaitAvailable blocks while the kv is known to be away. If ctx ends before, the error
// says what is wrong. An update that is made after that has a definite outcome
// more often than one that is made before.
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

// AppliedSequences returns, for each table that has been loaded, the sequence numbers of
// its shards in the newest snapshot.
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

// LeaderSequences reads from the kv what AppliedSequences will return when nothing is missing.
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

// lag keeps what is known of a table's newest heads, wherever it was seen.
type lag struct {
	mu    sync.Mutex
	known [Shards]uint64
	// since is when the first of the commits was seen that are still missing.
	since time.Time
}

// note takes heads in, with the state at that time.
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

// forget is for a kv that went backwards.
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
