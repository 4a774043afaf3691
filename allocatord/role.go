package allocatord

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/store"
)

const (
	// commitTimeout is how long a commit may take before that is logged and tried
	// again.
	commitTimeout = 30 * time.Second
	// A loop waits between firstPause and longestPause after a commit has failed.
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// role is a loop that works on shards while this replica holds them.
type role struct {
	log    *zap.Logger
	fences *fence.Fences
	store  *store.Store

	mu sync.Mutex
	// held are the shards to work on. Each has the number of its last gain.
	held  map[int]uint64
	gains uint64
	// changed is set when held has changed since the loop last asked, and wake ends the
	// loop's wait.
	changed bool
	wake    context.CancelFunc
	// reconciling holds one thing while the loop reconciles, so that a shard is given up
	// between two reconciliations.
	reconciling chan struct{}
}

func newRole(log *zap.Logger, f *fence.Fences) *role {
	return &role{log: log, fences: f, held: map[int]uint64{}, wake: func() {}, reconciling: make(chan struct{}, 1)}
}

// open sets the store, before anything else is called.
func (r *role) open(s *store.Store) { r.store = s }

// hold lets the loop work on a shard until ctx ends.
func (r *role) hold(ctx context.Context, shard int) error {
	return r.fences.Hold(ctx, r.store, shard, func() { r.set(shard, true) }, func() {
		r.set(shard, false)
		r.finishReconcile()
	})
}

// finishReconcile waits for the end of a reconciliation that began before, which may
// still write.
func (r *role) finishReconcile() {
	r.reconciling <- struct{}{}
	<-r.reconciling
}

func (r *role) set(shard int, held bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if held {
		r.gains++
		r.held[shard] = r.gains
	} else {
		delete(r.held, shard)
	}
	r.changed = true
	r.wake()
}

// shards returns the shards that are held, each with the number of its last gain.
func (r *role) shards() map[int]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = false
	return maps.Clone(r.held)
}

// run reconciles whenever the store or the shards have changed, until ctx ends. The
// function gets the shards before the snapshot: the snapshot must not be older than the
// fence of a shard that is held, because what others gave before would not be in it.
// It returns whether something could not be written and must be tried again.
func (r *role) run(ctx context.Context, reconcile func(ctx context.Context, held map[int]uint64, now *store.Snapshot) error) {
	retry := backoff.New(firstPause, longestPause)
	for ctx.Err() == nil {
		r.reconciling <- struct{}{}
		held := r.shards()
		now := r.store.Snapshot()
		err := reconcile(ctx, held, now)
		<-r.reconciling
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			retry.Reset()
			r.wait(ctx, now, 0)
		default:
			if !errors.Is(err, fence.ErrFenced) && !errors.Is(err, errStale) {
				r.log.Warn("failed to write allocations", zap.Error(err))
			}
			r.wait(ctx, now, retry.Next())
		}
	}
}

// errStale says that a record has changed since it was decided on.
var errStale = errors.New("decided on older records")

// wait waits for a newer snapshot or for a change of the shards, whichever comes first; after
// a failure, for some time only (0: there was none).
func (r *role) wait(ctx context.Context, after *store.Snapshot, most time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if most > 0 {
		// After a failure only time helps: a store that cannot be reached does not
		// get better by other changes.
		_ = backoff.Sleep(ctx, most)
		return
	}
	r.mu.Lock()
	if r.changed {
		cancel()
	}
	r.wake = cancel
	r.mu.Unlock()
	_, _ = r.store.Wait(ctx, after)
}

// commit runs updates of shards, and returns the error of each.
func (r *role) commit(ctx context.Context, updates []update) []error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	fns := make([]func(*store.Tx) error, len(updates))
	for i, u := range updates {
		fns[i] = func(tx *store.Tx) error {
			if err := r.fences.Check(tx, u.shard); err != nil {
				return err
			}
			return u.fn(tx)
		}
	}
	errs := r.store.UpdateAll(ctx, fns)
	for i, err := range errs {
		if errors.Is(err, store.ErrOutcomeUnknown) {
			r.fences.Invalidate(updates[i].shard)
		}
	}
	return errs
}

// update is a change of what a shard has given.
type update struct {
	shard int
	fn    func(tx *store.Tx) error
}
