package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// follower keeps one table of the store's snapshot up to date.
type follower struct {
	s     *Store
	def   TableDef
	index int // among the store's tables
	heads string
	pages string
	// readLock is held while the table is read from the kv. It is a channel, so that
	// waiting for it can be cancelled.
	readLock chan struct{}
	// readCounter numbers the calls of sync and their reads in the order in which they
	// start. lastRead is the number of the last successful read. readLock guards it.
	readCounter atomic.Uint64
	lastRead    uint64
	// newestIndex is the index of the last list of heads that was processed. It survives
	// outages of the kv, during which the kv may be restored to an older state.
	newestIndex uint64
	// inFlight is the commit to this table that has no result yet, or nil.
	inFlight atomic.Pointer[inFlightCommit]
	// cancelWatch ends the waiting list of heads, so that the next one starts without an
	// index.
	cancelWatch atomic.Pointer[context.CancelCauseFunc]
	// marks reports changes of the table; nil if the table has its own watch.
	marks *markWatch
	// lag says how far the snapshot is behind the kv.
	lag lag
}

func newFollower(s *Store, def TableDef, index int) *follower {
	return &follower{
		s: s, def: def, index: index,
		heads:    headPrefix(s.prefix, def),
		pages:    tablePrefix(s.prefix, def) + "p/",
		readLock: make(chan struct{}, 1),
	}
}

func (f *follower) state() *tableState { return f.s.Snapshot().tables[f.index] }

// run loads the table and watches it until ctx ends. While the kv is unavailable, the
// snapshot stays as it is.
func (f *follower) run(ctx context.Context) {
	log := f.s.log.With(zap.String("table", f.def.Name()))
	var after uint64
	failed := false
	retry := backoff.New(failurePause, maxFailurePause)
	for ctx.Err() == nil {
		next, err := f.follow(ctx, after)
		if ctx.Err() != nil {
			return
		}
		f.report(log, err, !failed)
		if err != nil {
			failed = true
			_ = retry.Wait(ctx)
			after = 0
			continue
		}
		failed = false
		retry.Reset()
		after = next
	}
}

// report records the result of an attempt to read the table. It logs once for all
// tables that the kv is unavailable or available again, and once for each table any
// other error.
func (f *follower) report(log *zap.Logger, err error, first bool) {
	f.s.logAvailability(f.s.health.report(f.index, err), err)
	if err != nil && !errors.Is(err, kv.ErrUnavailable) && first {
		log.Warn("failed to follow table; retrying", zap.Error(err))
	}
}

// logAvailability logs that the kv became unavailable or available again.
func (s *Store) logAvailability(c availabilityChange, err error) {
	switch {
	case c.away && !c.was:
		s.log.Warn("store is unavailable; waiting for it", zap.Error(err))
	case c.was && !c.away:
		s.log.Info("store is available again", zap.Duration("after", c.since.Round(time.Millisecond)))
	}
}

// follow waits until a head has changed since index after, updates the snapshot, and
// returns the index to continue from.
func (f *follower) follow(ctx context.Context, after uint64) (uint64, error) {
	if f.state() == nil {
		index, err := f.load(ctx)
		f.newestIndex = index
		return index, err
	}
	pairs, next, err := f.waitForHeads(ctx, after)
	if errors.Is(err, errRestartWatch) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("watch heads: %w", err)
	}
	f.s.metrics.wakeups.WithLabelValues(f.def.Name()).Inc()
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return 0, fmt.Errorf("watch heads: %w", err)
	}
	backwards := next < f.newestIndex || f.hasOlderHead(heads, next)
	f.lag.note(heads, f.state())
	for f.differs(heads, backwards) {
		// This store's own commit may be listed before its result has reached the
		// committer, which will install it.
		if fl := f.inFlight.Load(); fl != nil && heads.wroteLast(fl.writer) {
			select {
			case <-fl.done:
				continue
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		hint := heads
		if backwards {
			// The server lags, or the kv was restored to an older state. Only a
			// consistent read can tell.
			hint = nil
		}
		if err := f.refresh(ctx, hint); err != nil {
			return 0, err
		}
		break
	}
	f.newestIndex = next
	if backwards {
		next = 0
	}
	return next, nil
}

// errRestartWatch ends a list that waits for an index that the kv may not reach soon.
var errRestartWatch = errors.New("restart the list without an index")

// waitForHeads waits until a head has changed since index after, and lists the heads.
func (f *follower) waitForHeads(ctx context.Context, after uint64) ([]kv.Pair, uint64, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	f.cancelWatch.Store(&end)
	list := f.markedHeads
	if f.marks == nil {
		list = func(ctx context.Context, after uint64) ([]kv.Pair, uint64, error) {
			return f.s.kv.List(ctx, f.heads, kv.ListOptions{After: after, Stale: true})
		}
	}
	pairs, next, err := list(ctx, after)
	if err != nil && errors.Is(context.Cause(ctx), errRestartWatch) {
		return nil, 0, errRestartWatch
	}
	return pairs, next, err
}

// restartWatch ends the waiting list. After a restore, the kv reaches the index that the
// list waits for much later.
func (f *follower) restartWatch() {
	if f.marks != nil {
		f.marks.restartWatch()
	}
	if end := f.cancelWatch.Load(); end != nil {
		(*end)(errRestartWatch)
	}
}

// hasOlderHead reports whether a list that is at least as new as the snapshot has a head
// that is older than in the snapshot. Then the kv was restored and changed afterwards.
func (f *follower) hasOlderHead(heads *tableHeads, index uint64) bool {
	for i, sh := range f.state().shards {
		if heads[i].index < sh.index && sh.index <= index {
			return true
		}
	}
	return false
}

// differs reports whether a head is newer than in the snapshot. An older head comes from
// a server that lags, unless the kv was restored (backwards).
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
	index uint64 // of the head in the kv; 0 if it does not exist
}

func (h *tableHeads) wroteLast(w writer) bool {
	for i := range h {
		if h[i].head.wroteLast(w) {
			return true
		}
	}
	return false
}

// parseHeads decodes the pairs under the prefix of the heads.
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

// announceCommit tells the followers of the plan's tables about a commit. land tells
// them that the commit has its result, and must be called once.
func (s *Store) announceCommit(p *plan, w writer) (land func()) {
	fl := &inFlightCommit{writer: w, done: make(chan struct{})}
	for i := range p.tables {
		s.tables[i].inFlight.Store(fl)
	}
	return func() {
		for i := range p.tables {
			s.tables[i].inFlight.Store(nil)
		}
		close(fl.done)
	}
}

// txn runs a transaction of the kv with a timeout.
func (s *Store) txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pairs, err := s.kv.Txn(ctx, ops)
	s.health.reportCommit(err)
	return pairs, err
}
