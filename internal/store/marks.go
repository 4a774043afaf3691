package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// Each commit to a rarely written table also writes the table's mark, a small key.
// The marks of all tables share a prefix. A store watches all of its rarely written
// tables with one list of the marks, and lists the heads of a table when its mark has
// changed.

func marksPrefix(prefix string) string { return prefix + "/changes/" }

func markKey(prefix string, t TableDef) string { return marksPrefix(prefix) + t.Name() }

// mark returns the operation that writes a table's mark. The value is unique for each
// commit, because writing an equal value is not a change.
func mark(prefix string, t TableDef, w writer) kv.Op {
	value := binary.AppendUvarint(binary.AppendUvarint(nil, w.id), w.commit)
	return kv.Op{Verb: kv.Set, Key: markKey(prefix, t), Value: value}
}

// maxMark is the greatest length of a mark's value.
const maxMark = 2 * binary.MaxVarintLen64

// markWatch watches the marks for the followers of several tables.
type markWatch struct {
	s *Store
	// cancelWatch ends the waiting list, so that the next one starts without an index.
	cancelWatch atomic.Pointer[context.CancelCauseFunc]

	mu      sync.Mutex
	indexes map[string]uint64 // by key
	// backwards counts how often a mark was older than before. failures counts failed
	// lists; err is the last error.
	backwards, failures int
	err                 error
	// changed is closed and replaced after each change of the fields above.
	changed chan struct{}
}

func newMarkWatch(s *Store) *markWatch { return &markWatch{s: s, changed: make(chan struct{})} }

// run watches the marks until ctx ends.
func (w *markWatch) run(ctx context.Context) {
	var after, newest uint64
	failed := false
	retry := backoff.New(failurePause, maxFailurePause)
	for ctx.Err() == nil {
		pairs, next, err := w.list(ctx, after, newest)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errRestartWatch):
			after, newest = 0, 0
		case err != nil:
			if !failed {
				w.s.log.Debug("failed to watch marks; retrying", zap.Error(err))
			}
			w.fail(fmt.Errorf("watch marks: %w", err))
			failed = true
			_ = retry.Wait(ctx)
			after = 0
		default:
			failed = false
			retry.Reset()
			w.update(pairs)
			after, newest = next, next
		}
	}
}

// list waits until a mark has changed since index after, and lists the marks. If the
// list is older than the latest one, the server lags or the kv was restored, and the
// leader is asked.
func (w *markWatch) list(ctx context.Context, after, newest uint64) ([]kv.Pair, uint64, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	w.cancelWatch.Store(&end)
	prefix := marksPrefix(w.s.prefix)
	pairs, next, err := w.s.kv.List(ctx, prefix, kv.ListOptions{After: after, Stale: newest > 0})
	if err == nil && next < newest {
		pairs, next, err = w.s.kv.List(ctx, prefix, kv.ListOptions{})
	}
	if err != nil && errors.Is(context.Cause(ctx), errRestartWatch) {
		return nil, 0, errRestartWatch
	}
	return pairs, next, err
}

// restartWatch ends the waiting list.
func (w *markWatch) restartWatch() {
	if end := w.cancelWatch.Load(); end != nil {
		(*end)(errRestartWatch)
	}
}

func (w *markWatch) update(pairs []kv.Pair) {
	indexes := make(map[string]uint64, len(pairs))
	for _, p := range pairs {
		indexes[p.Key] = p.Index
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if maps.Equal(indexes, w.indexes) {
		return
	}
	for key, was := range w.indexes {
		if indexes[key] < was {
			w.backwards++
			break
		}
	}
	w.indexes = indexes
	w.wake()
}

func (w *markWatch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures++
	w.err = err
	w.wake()
}

// wake wakes all waiters. The caller holds the lock.
func (w *markWatch) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// wait waits until a mark is newer than index after, and returns its index. It returns
// errRestartWatch if a mark becomes older than before, and the error of the watch if the
// watch fails.
func (w *markWatch) wait(ctx context.Context, key string, after uint64) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	backwards, failures := w.backwards, w.failures
	for {
		switch {
		case w.indexes[key] > after:
			return w.indexes[key], nil
		case w.backwards != backwards:
			return 0, errRestartWatch
		case w.failures != failures:
			return 0, w.err
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		w.mu.Lock()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
}

// markedHeads waits until the table's mark is newer than index after, and lists the heads
// of the table.
func (f *follower) markedHeads(ctx context.Context, after uint64) ([]kv.Pair, uint64, error) {
	var least uint64
	if after > 0 {
		var err error
		if least, err = f.marks.wait(ctx, markKey(f.s.prefix, f.def), after); err != nil {
			return nil, 0, err
		}
	}
	pairs, next, err := f.s.kv.List(ctx, f.heads, kv.ListOptions{Stale: true})
	if err == nil && next < least {
		// The server lags behind the one that listed the marks.
		return f.s.kv.List(ctx, f.heads, kv.ListOptions{})
	}
	return pairs, next, err
}

// markedTables returns the followers of the tables that use marks.
func (s *Store) markedTables() []*follower {
	var marked []*follower
	for _, f := range s.tables {
		if f.marks != nil {
			marked = append(marked, f)
		}
	}
	return marked
}

// markedPerProbe is the number of tables with marks that one probe reads: their heads
// fit into one transaction.
const markedPerProbe = 8

// probeMarked reads the heads of some tables with marks from the leader of the kv. Only
// this finds commits of a version that writes no marks.
func (s *Store) probeMarked(ctx context.Context, turn int) error {
	marked := s.markedTables()
	if len(marked) == 0 {
		return nil
	}
	groups := (len(marked) + markedPerProbe - 1) / markedPerProbe
	first := turn % groups * markedPerProbe
	marked = marked[first:min(first+markedPerProbe, len(marked))]
	before := make([]*tableState, len(marked))
	var ops []kv.Op
	for i, f := range marked {
		before[i] = f.state()
		for shard := range Shards {
			ops = append(ops, kv.Op{Verb: kv.Get, Key: headKey(s.prefix, f.def, shard)})
		}
	}
	call, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no answer within %v: %w", probeTimeout, kv.ErrUnavailable))
	defer cancel()
	pairs, err := s.kv.Txn(call, ops)
	if err != nil {
		return fmt.Errorf("read heads of marked tables: %w", err)
	}
	for i, f := range marked {
		heads, err := f.parseHeads(pairs)
		if err != nil {
			return fmt.Errorf("read heads of table %s: %w", f.def.Name(), err)
		}
		f.verify(ctx, before[i], heads)
	}
	return nil
}
