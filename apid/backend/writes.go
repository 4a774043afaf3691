package backend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
)

// writes are the requests that wait for the store, which must run until they have
// their answers.
type writes struct {
	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
}

// begin lets a write in, and returns what it calls when it has ended. One that
// comes too late is not waited for, and the store refuses it.
func (w *writes) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return func() {}
	}
	w.wg.Add(1)
	return w.wg.Done
}

// finish waits for those that have begun. Each has a deadline.
func (w *writes) finish() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.wg.Wait()
}

// Writing bounds a wait for the store. A store that has not answered by then
// counts as away. A client that set a deadline learns it before the deadline.
func (b *Backend) Writing(ctx context.Context) (context.Context, context.CancelFunc) {
	end := b.writes.begin()
	most := b.opt.WriteTimeout
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		most = min(most, left-min(left/10, answerTime))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("no answer within %v: %w", most, kv.ErrUnavailable))
	return ctx, func() {
		cancel()
		end()
	}
}

// answerTime is how long before its deadline a client is told that the store is
// away, so that the answer still reaches it.
const answerTime = 200 * time.Millisecond

// ErrNoChange aborts an update whose result equals the stored record. Returning an
// error makes the store revalidate its reads; a commit that writes nothing would
// not, so that a replica that lags could acknowledge a change it never made.
var ErrNoChange = errors.New("the record is as requested already")

// Update is the store's, but takes ErrNoChange for success. It sends nothing to a
// store that is known to be away: it waits until ctx ends, so that nothing was
// changed for certain if the store does not come back.
func (b *Backend) Update(ctx context.Context, fn func(*store.Tx) error) error {
	if err := b.store.WaitAvailable(ctx); err != nil {
		return err
	}
	if err := b.store.Update(ctx, fn); !errors.Is(err, ErrNoChange) {
		return err
	}
	return nil
}
