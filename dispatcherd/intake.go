package dispatcherd

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
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// updateStatuses is how many statuses are written in one update. They need
// not be written together, so this only has to be small enough to fit a
// transaction (some 200 bytes each) and large enough to share its cost.
const updateStatuses = 256

// intake writes the statuses of one shard's nodes. What arrives while a write
// is under way goes into the next one, the newest of each task only: an idle
// intake writes at once, a busy one in large batches.
type intake struct {
	d *Daemon
	// sure reports whether the shard is known to be this replica's: tasks of a node
	// that another dispatcher may have by now are not given up.
	sure func() bool

	mu   sync.Mutex
	next batch
	// wake has room for one: it says that there is something to write.
	wake chan struct{}
}

// batch is what is to be written together.
type batch struct {
	// reports holds what workers said, by the key of the status.
	reports map[string]*recordv1.Status
	// settle holds keys of statuses that go if their assignment is gone. If it is
	// not, the value, unless empty, is why the task is given up.
	settle map[string]string
	// receipts are owed for reports once the batch is written.
	receipts map[*session]receipt
	// spans end when the batch is written.
	spans []tracing.Span
}

// receipt is for all of a session's reports up to one.
type receipt struct {
	sequence uint64
	// since is when the first of them arrived.
	since time.Time
}

func newBatch() batch {
	return batch{reports: map[string]*recordv1.Status{}, settle: map[string]string{}, receipts: map[*session]receipt{}}
}

func newIntake(d *Daemon, sure func() bool) *intake {
	return &intake{d: d, sure: sure, next: newBatch(), wake: make(chan struct{}, 1)}
}

// take takes a report: statuses by key. It is acknowledged when they are
// written.
func (in *intake) take(from *session, sequence uint64, statuses map[string]*recordv1.Status, spans []tracing.Span, now time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.next.spans = append(in.next.spans, spans...)
	for key, s := range statuses {
		in.next.reports[key] = merge(in.next.reports[key], s)
	}
	r, owed := in.next.receipts[from]
	if !owed {
		r.since = now
	}
	r.sequence = max(r.sequence, sequence)
	in.next.receipts[from] = r
	in.nudge()
}

// settle has statuses removed whose assignments are gone. If giveUp is set,
// the tasks of the others have orphaned.
func (in *intake) settle(keys []string, giveUp string) {
	if len(keys) == 0 {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, key := range keys {
		if in.next.settle[key] == "" {
			in.next.settle[key] = giveUp
		}
	}
	in.nudge()
}

// settleNode settles all of a node's statuses.
func (in *intake) settleNode(node, giveUp string) {
	snap := in.d.store.Snapshot()
	var keys []string
	for e := range in.d.tables.Statuses.Scan(snap, node+"/") {
		if giveUp == "" {
			if _, ok := in.d.tables.Assignments.Get(snap, e.Key); ok {
				continue
			}
		}
		keys = append(keys, e.Key)
	}
	if giveUp != "" {
		for e := range in.d.tables.Assignments.Scan(snap, node+"/") {
			keys = append(keys, e.Key)
		}
	}
	in.settle(keys, giveUp)
}

// waiting returns how many statuses are in the next batch.
func (in *intake) waiting() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.next.reports)
}

func (in *intake) nudge() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends. What is not written then is not acknowledged
// either, so the workers will tell the shard's next owner.
func (in *intake) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-in.wake:
		}
		in.mu.Lock()
		b := in.next
		in.next = newBatch()
		in.mu.Unlock()
		written := in.write(ctx, b)
		for _, span := range b.spans {
			span.End(ctx.Err())
		}
		if !written {
			return nil
		}
		now := time.Now()
		for s, r := range b.receipts {
			in.d.metrics.reportSeconds.Observe(now.Sub(r.since).Seconds())
			s.acknowledge(r.sequence)
		}
	}
}

// write writes a batch, however long the store is away. It returns false if
// ctx ended first.
func (in *intake) write(ctx context.Context, b batch) bool {
	pending := slices.Collect(slices.Chunk(in.changes(b), updateStatuses))
	retry := newBackoff()
	for len(pending) > 0 {
		updates := make([]*statusWrite, len(pending))
		fns := make([]func(*store.Tx) error, len(pending))
		for i, changes := range pending {
			updates[i] = &statusWrite{in: in, changes: changes}
			fns[i] = updates[i].apply
		}
		pending = nil
		var away error
		for i, err := range in.d.store.UpdateAll(ctx, fns) {
			changes := updates[i].changes
			switch {
			case err == nil:
				in.d.metrics.applied.Add(float64(updates[i].written))
			case !errors.Is(err, kv.ErrTooLarge):
				away = err
				pending = append(pending, changes)
			case len(changes) > 1:
				half := len(changes) / 2
				pending = append(pending, changes[:half], changes[half:])
			default:
				// Cannot be, with what observed lets through. One status must not hold up
				// all others.
				in.d.log.Error("status is too large and is lost", zap.String("key", changes[0].key), zap.Error(err))
			}
		}
		if ctx.Err() != nil {
			return false
		}
		if away != nil {
			in.d.log.Warn("statuses are not written yet", zap.Int("updates", len(pending)), zap.Error(away))
			retry.wait(ctx)
		}
	}
	return ctx.Err() == nil
}

// statusChange is what is to become of one status.
type statusChange struct {
	key string
	// report is nil if the status is to go.
	report *recordv1.Status
}

// changes works out a batch on the newest snapshot, in order of key, so that
// neighbours are written together.
func (in *intake) changes(b batch) []statusChange {
	snap, now := in.d.store.Snapshot(), time.Now()
	sure := in.sure()
	t := in.d.tables
	wanted := make(map[string]*recordv1.Status, len(b.reports)+len(b.settle))
	for key, report := range b.reports {
		if _, ok := t.Assignments.Get(snap, key); !ok {
			in.d.metrics.ignored.WithLabelValues(ignoredUnassigned).Inc()
			continue
		}
		wanted[key] = report
	}
	for key, giveUp := range b.settle {
		if _, ok := t.Assignments.Get(snap, key); !ok {
			wanted[key] = nil
			continue
		}
		if giveUp == givenUpDown && !sure {
			continue // the node is judged anew once it is known whose it is
		}
		have, ok := t.Statuses.Get(snap, key)
		if giveUp != "" && (!ok || have.Value.State <= musterv1.TaskState_RUNNING) {
			wanted[key] = orphan(now, giveUp)
		}
	}
	var changes []statusChange
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		report := wanted[key]
		have, ok := t.Statuses.Get(snap, key)
		switch {
		case report == nil && !ok:
		case report != nil && ok && merge(have.Value, report) == have.Value:
			// Said before: every worker says all it knows at each hello.
			in.d.metrics.ignored.WithLabelValues(ignoredKnown).Inc()
		default:
			if report != nil {
				report.AppliedAt = now.UnixMilli()
			}
			changes = append(changes, statusChange{key, report})
		}
	}
	return changes
}

// statusWrite is one update. It may run several times, each on newer state.
type statusWrite struct {
	in      *intake
	changes []statusChange
	written int
}

func (w *statusWrite) apply(tx *store.Tx) error {
	statuses := w.in.d.tables.Statuses
	w.written = 0
	for _, c := range w.changes {
		have, ok := statuses.Get(tx, c.key)
		if c.report == nil {
			if ok {
				statuses.Delete(tx, c.key)
			}
			continue
		}
		next := merge(have.Value, c.report)
		if next == have.Value {
			continue
		}
		statuses.Put(tx, c.key, next)
		w.written++
	}
	return nil
}
