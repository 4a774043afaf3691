package store

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// follower keeps the store's snapshot of one table up to date.
type follower struct {
	s     *Store
	def   TableDef
	place int // among the store's tables
	heads string
	pages string
	// reading is held by who reads the table: a channel and not a mutex,
	// because it is held while the kv is asked.
	reading chan struct{}
	// flight is the commit to this table that is on its way, or nil.
	flight atomic.Pointer[flight]
}

func newFollower(s *Store, def TableDef, place int) *follower {
	return &follower{
		s: s, def: def, place: place,
		heads:   headPrefix(s.prefix, def),
		pages:   tablePrefix(s.prefix, def) + "p/",
		reading: make(chan struct{}, 1),
	}
}

func (f *follower) state() *tableState { return f.s.Snapshot().tables[f.place] }

// run loads the table and follows it until ctx ends. While the kv is away, the
// last snapshot stays.
func (f *follower) run(ctx context.Context) {
	log := f.s.log.With(zap.String("table", f.def.Name()))
	var after uint64
	for attempt := 0; ctx.Err() == nil; {
		next, err := f.follow(ctx, after)
		if ctx.Err() != nil {
			return
		}
		f.s.health.report(f.place, err)
		if err != nil {
			if attempt == 0 {
				log.Warn("table not up to date", zap.Error(err))
			}
			pause(ctx, failurePause, maxFailurePause, attempt)
			attempt++
			after = 0
			continue
		}
		if attempt > 0 {
			log.Info("table up to date again")
			attempt = 0
		}
		after = next
	}
}

// follow waits until a head has changed since index after, brings the snapshot
// up to date, and returns the index to go on from.
func (f *follower) follow(ctx context.Context, after uint64) (uint64, error) {
	if f.state() == nil {
		return f.load(ctx)
	}
	pairs, next, err := f.s.kv.List(ctx, f.heads, kv.ListOptions{After: after, Stale: true})
	if err != nil {
		return 0, fmt.Errorf("watch heads: %w", err)
	}
	f.s.metrics.wakeups.WithLabelValues(f.def.Name()).Inc()
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return 0, fmt.Errorf("watch heads: %w", err)
	}
	backwards := next < after
	for f.differs(heads, backwards) {
		// Our own commit shows up here before its result has come back to
		// the committer, which is about to install it.
		if fl := f.flight.Load(); fl != nil && heads.wroteLast(fl.writer) {
			select {
			case <-fl.done:
				continue
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		if err := f.refresh(ctx, heads); err != nil {
			return 0, err
		}
		break
	}
	if backwards {
		next = 0
	}
	return next, nil
}

// differs reports whether heads hold something newer than the snapshot. Older
// ones come from a server that lags, unless the kv itself went backwards.
func (f *follower) differs(heads *tableHeads, backwards bool) bool {
	for i, sh := range f.state().shards {
		if heads[i].index > sh.index || backwards && heads[i].index != sh.index {
			return true
		}
	}
	return false
}

// tableHeads are the heads of a table at one moment.
type tableHeads [Shards]struct {
	*head
	index uint64 // in the kv; 0 if the head does not exist
}

func (h *tableHeads) wroteLast(w writer) bool {
	for i := range h {
		if h[i].head.wroteLast(w) {
			return true
		}
	}
	return false
}

// parseHeads decodes what was read under the prefix of heads.
func (f *follower) parseHeads(pairs []kv.Pair) (*tableHeads, error) {
	heads := &tableHeads{}
	none := &head{}
	for i := range heads {
		heads[i].head = none
	}
	for _, p := range pairs {
		rest, ok := strings.CutPrefix(p.Key, f.heads)
		if !ok {
			continue
		}
		i, err := parseHeadKey(rest)
		if err != nil {
			return nil, err
		}
		h, err := decodeHead(p.Value)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", p.Key, err)
		}
		heads[i].head, heads[i].index = h, p.Index
	}
	return heads, nil
}

// takeOff announces a commit to the tables that it writes to. The function that
// it returns says that it is over, and may be called once.
func (s *Store) takeOff(p *plan, w writer) (land func()) {
	fl := &flight{writer: w, done: make(chan struct{})}
	for i := range p.tables {
		s.tables[i].flight.Store(fl)
	}
	return func() {
		for i := range p.tables {
			s.tables[i].flight.Store(nil)
		}
		close(fl.done)
	}
}

// txn is the kv's, with a bound on its time.
func (s *Store) txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pairs, err := s.kv.Txn(ctx, ops)
	s.health.reportCommit(err)
	return pairs, err
}
