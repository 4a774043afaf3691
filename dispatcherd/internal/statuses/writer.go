// Package statuses writes what workers report about their tasks.
//
// Pure functions decide what a report changes (status.go). A [Writer] writes the
// statuses of one shard's nodes, in one goroutine, and acknowledges reports after
// they are written.
//
// Lock order: a Writer calls nothing while it holds its lock.
package statuses

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// statusesPerUpdate is how many statuses are written in one update. They do not
// have to be written together. The number must be small enough for a transaction
// (some 200 bytes each) and large enough to share its cost.
const statusesPerUpdate = 256

// retryPause is the first pause after statuses that were not written, and
// maxRetryPause the longest.
const (
	retryPause    = 50 * time.Millisecond
	maxRetryPause = 2 * time.Second
)

// GiveUp says whether the tasks that are still assigned to a node are given up.
type GiveUp uint8

const (
	// Keep does not give them up.
	Keep GiveUp = iota
	// NodeDown gives them up because the node has been down for too long.
	NodeDown
	// NodeRemoved gives them up because an operator removed the node.
	NodeRemoved
)

// String returns the reason that users see in the status of the tasks.
func (g GiveUp) String() string {
	switch g {
	case NodeDown:
		return "its node has been down for too long"
	case NodeRemoved:
		return "its node was removed from the cluster"
	default:
		return ""
	}
}

// Reporter receives the acknowledgement of its reports.
type Reporter interface {
	// Acknowledge says that reports up to a sequence are written.
	Acknowledge(sequence uint64)
}

// Store is the part of the store that a writer uses.
type Store interface {
	Snapshot() *store.Snapshot
	UpdateAll(ctx context.Context, updates []func(*store.Tx) error) []error
}

// Config configures a writer.
type Config struct {
	Store  Store
	Tables *state.Tables
	// Confirmed reports whether the shard is known to belong to this replica. If
	// not, another dispatcher may have the node, and no task is given up.
	Confirmed func() bool
	Metrics   *Metrics
	Logger    *zap.Logger
}

// Writer writes the statuses of one shard's nodes. Reports that arrive during a
// write are part of the next one, only the newest of each task: an idle writer
// writes at once, a busy one in large batches.
type Writer struct {
	cfg Config

	mu   sync.Mutex
	next batch
	// wake has a buffer of one. It is filled when there is something to write.
	wake chan struct{}
}

// batch is written together.
type batch struct {
	// reports holds reported statuses by key.
	reports map[string]*recordv1.Status
	// settle holds the keys of statuses that are removed if their assignment is
	// gone. Otherwise the value says whether the task is given up.
	settle map[string]GiveUp
	// receipts are due after the batch is written.
	receipts map[Reporter]receipt
	// spans end when the batch is written.
	spans []tracing.Span
}

// receipt acknowledges all reports of a reporter up to one.
type receipt struct {
	sequence uint64
	// since is when the first of them arrived.
	since time.Time
}

func newBatch() batch {
	return batch{reports: map[string]*recordv1.Status{}, settle: map[string]GiveUp{}, receipts: map[Reporter]receipt{}}
}

// NewWriter returns a writer. Run writes.
func NewWriter(cfg Config) *Writer {
	return &Writer{cfg: cfg, next: newBatch(), wake: make(chan struct{}, 1)}
}

// Report is one report of a worker.
type Report struct {
	Sequence uint64
	// Statuses are the reported ones by key.
	Statuses map[string]*recordv1.Status
	// Spans end when the report is written.
	Spans []tracing.Span
	// At is when the report arrived.
	At time.Time
}

// Write queues a report. It is acknowledged after it is written.
func (w *Writer) Write(from Reporter, r Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next.spans = append(w.next.spans, r.Spans...)
	for key, s := range r.Statuses {
		w.next.reports[key] = Merge(w.next.reports[key], s)
	}
	due, queued := w.next.receipts[from]
	if !queued {
		due.since = r.At
	}
	due.sequence = max(due.sequence, r.Sequence)
	w.next.receipts[from] = due
	w.notify()
}

// Settle removes the statuses whose assignments are gone. The tasks of the others
// are orphaned if giveUp says so.
func (w *Writer) Settle(keys []string, giveUp GiveUp) {
	if len(keys) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range keys {
		if w.next.settle[key] == Keep {
			w.next.settle[key] = giveUp
		}
	}
	w.notify()
}

// SettleNode settles all statuses of a node.
func (w *Writer) SettleNode(node string, giveUp GiveUp) {
	snap := w.cfg.Store.Snapshot()
	var keys []string
	for e := range w.cfg.Tables.Statuses.Scan(snap, node+"/") {
		if giveUp == Keep {
			if _, ok := w.cfg.Tables.Assignments.Get(snap, e.Key); ok {
				continue
			}
		}
		keys = append(keys, e.Key)
	}
	if giveUp != Keep {
		for e := range w.cfg.Tables.Assignments.Scan(snap, node+"/") {
			keys = append(keys, e.Key)
		}
	}
	w.Settle(keys, giveUp)
}

// Waiting returns the number of statuses in the next batch.
func (w *Writer) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.next.reports)
}

func (w *Writer) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends. What is not written by then is not acknowledged
// either, so the workers report it to the shard's next owner.
func (w *Writer) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		w.mu.Lock()
		b := w.next
		w.next = newBatch()
		w.mu.Unlock()
		written := w.write(ctx, b)
		for _, span := range b.spans {
			span.End(ctx.Err())
		}
		if !written {
			return nil
		}
		now := time.Now()
		for from, r := range b.receipts {
			w.cfg.Metrics.reportSeconds.Observe(now.Sub(r.since).Seconds())
			from.Acknowledge(r.sequence)
		}
	}
}

// write writes a batch, however long the store is unavailable. It returns false if
// ctx ended first.
func (w *Writer) write(ctx context.Context, b batch) bool {
	pending := slices.Collect(slices.Chunk(w.changes(b), statusesPerUpdate))
	attempts := backoff.New(retryPause, maxRetryPause)
	for len(pending) > 0 {
		updates := make([]*update, len(pending))
		fns := make([]func(*store.Tx) error, len(pending))
		for i, changes := range pending {
			updates[i] = &update{table: w.cfg.Tables.Statuses, changes: changes}
			fns[i] = updates[i].apply
		}
		pending = nil
		var unavailable error
		for i, err := range w.cfg.Store.UpdateAll(ctx, fns) {
			changes := updates[i].changes
			switch {
			case err == nil:
				w.cfg.Metrics.applied.Add(float64(updates[i].written))
			case !errors.Is(err, kv.ErrTooLarge):
				unavailable = err
				pending = append(pending, changes)
			case len(changes) > 1:
				half := len(changes) / 2
				pending = append(pending, changes[:half], changes[half:])
			default:
				// The limits in Observed rule this out. One status must not delay all
				// others.
				w.cfg.Logger.Error("status is too large and is lost", zap.String("key", changes[0].key), zap.Error(err))
			}
		}
		if ctx.Err() != nil {
			return false
		}
		if unavailable != nil {
			w.cfg.Logger.Warn("failed to write statuses; retrying", zap.Int("updates", len(pending)), zap.Error(unavailable))
			_ = attempts.Wait(ctx)
		}
	}
	return ctx.Err() == nil
}

// change is the change of one status.
type change struct {
	key string
	// report is nil if the status is removed.
	report *recordv1.Status
}

// changes returns what a batch changes in the newest snapshot, in order of key, so
// that neighbours are written together.
func (w *Writer) changes(b batch) []change {
	snap, now := w.cfg.Store.Snapshot(), time.Now()
	confirmed := w.cfg.Confirmed()
	t := w.cfg.Tables
	wanted := make(map[string]*recordv1.Status, len(b.reports)+len(b.settle))
	for key, report := range b.reports {
		if _, ok := t.Assignments.Get(snap, key); !ok {
			w.cfg.Metrics.ignored.WithLabelValues(ignoredUnassigned).Inc()
			continue
		}
		wanted[key] = report
	}
	for key, giveUp := range b.settle {
		if _, ok := t.Assignments.Get(snap, key); !ok {
			wanted[key] = nil
			continue
		}
		if giveUp == NodeDown && !confirmed {
			continue // the node is checked again after the shard's owner is known
		}
		have, ok := t.Statuses.Get(snap, key)
		if giveUp != Keep && (!ok || have.Value.State <= musterv1.TaskState_RUNNING) {
			wanted[key] = orphaned(now, giveUp.String())
		}
	}
	var changes []change
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		report := wanted[key]
		have, ok := t.Statuses.Get(snap, key)
		switch {
		case report == nil && !ok:
		case report != nil && ok && Merge(have.Value, report) == have.Value:
			// Every worker reports all it knows after each hello.
			w.cfg.Metrics.ignored.WithLabelValues(ignoredKnown).Inc()
		default:
			if report != nil {
				report.AppliedAt = now.UnixMilli()
			}
			changes = append(changes, change{key, report})
		}
	}
	return changes
}

// update is one update of the store. It may run several times, each time on newer
// state.
type update struct {
	table   *store.Table[*recordv1.Status]
	changes []change
	written int
}

func (u *update) apply(tx *store.Tx) error {
	u.written = 0
	for _, c := range u.changes {
		have, ok := u.table.Get(tx, c.key)
		if c.report == nil {
			if ok {
				u.table.Delete(tx, c.key)
			}
			continue
		}
		next := Merge(have.Value, c.report)
		if next == have.Value {
			continue
		}
		u.table.Put(tx, c.key, next)
		u.written++
	}
	return nil
}
