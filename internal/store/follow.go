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

// follower keeps the store's snapshot of one table up to date.
type follower struct {
	s     *Store
	def   TableDef
	index int // among the store's tables
	heads string
	pages string
	// readLock is held by who reads the table: a channel and not a mutex,
	// because it is held while the kv is asked.
	readLock chan struct{}
	// readCounter numbers calls of sync and reads for them, in order of their beginning;
	// lastRead is that of the last read that ended well. readLock guards lastRead.
	readCounter atomic.Uint64
	lastRead    uint64
	// newestIndex is the index of the last list of heads that was taken in: not of the
	// last since the kv was away, for it may have been restored meanwhile.
	newestIndex uint64
	// inFlight is the commit to this table that is on its way, or nil.
	inFlight atomic.Pointer[inFlightCommit]
	// cancelWatch ends the list of heads that waits, so that the next begins from nothing.
	cancelWatch atomic.Pointer[context.CancelCauseFunc]
	// marks tells of changes to the table, unless it has a watch of its own.
	marks *markWatch
	// lag is how far the snapshot is behind what has been seen in the kv.
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

// run loads the table and follows it until ctx ends. While the kv is away, the
// last snapshot stays.
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

// report notes how an attempt to follow the table ended, and logs what an
// operator should know: once for all tables that the kv is away, and when it is
// back; and for each table what else is wrong with it, the first time.
func (f *follower) report(log *zap.Logger, err error, first bool) {
	f.s.logAvailability(f.s.health.report(f.index, err), err)
	if err != nil && !errors.Is(err, kv.ErrUnavailable) && first {
		log.Warn("table not up to date", zap.Error(err))
	}
}

// logAvailability logs that the kv went away or came back.
func (s *Store) logAvailability(c availabilityChange, err error) {
	switch {
	case c.away && !c.was:
		s.log.Warn("store is away: waiting for it", zap.Error(err))
	case c.was && !c.away:
		s.log.Info("store is back", zap.Duration("after", c.since.Round(time.Millisecond)))
	}
}

// follow waits until a head has changed since index after, brings the snapshot
// up to date, and returns the index to continue from.
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
		// Our own commit shows up here before its result has come back to
		// the committer, which is about to install it.
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
			// A server that lags, or the kv itself went backwards: only a read
			// that is surely new can tell.
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

// errRestartWatch is the end of a list that waits for what may not come for long.
var errRestartWatch = errors.New("the list is to begin from nothing")

// waitForHeads lists the heads when one has changed since index after.
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

// restartWatch ends a list that waits: where the kv was restored, indexes that it
// waits for may be long in coming.
func (f *follower) restartWatch() {
	if f.marks != nil {
		f.marks.restartWatch()
	}
	if end := f.cancelWatch.Load(); end != nil {
		(*end)(errRestartWatch)
	}
}

// hasOlderHead reports whether a head is older than the snapshot's in a list that is as
// new as that: the kv was restored, and has gone on from there.
func (f *follower) hasOlderHead(heads *tableHeads, index uint64) bool {
	for i, sh := range f.state().shards {
		if heads[i].index < sh.index && sh.index <= index {
			return true
		}
	}
	return false
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

// announceCommit announces a commit to the tables that it writes to. The function that
// it returns says that it is over, and may be called once.
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

// txn is the kv's, with a bound on its time.
func (s *Store) txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pairs, err := s.kv.Txn(ctx, ops)
	s.health.reportCommit(err)
	return pairs, err
}
