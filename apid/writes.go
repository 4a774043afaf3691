package apid

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
)

// writes are the requests that wait for the store, so that it is kept for them
// until they have their answers.
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

// writing bounds a wait for the store. A store that has not answered by then
// counts as away. A client that set a deadline hears of it before that.
func (d *Daemon) writing(ctx context.Context) (context.Context, context.CancelFunc) {
	end := d.writes.begin()
	most := d.cfg.WriteTimeout
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

// answerTime is how long before a client's deadline it is told that the store is
// away, so that it still hears it.
const answerTime = 200 * time.Millisecond

// errAlready says that what is asked for is so already. An update that writes
// nothing is not held against what others have written meanwhile, and one that
// fails is: without it, a replica that lags would accept a change and not make it.
var errAlready = errors.New("it is so already")

// update is the store's, but takes errAlready for success, and sends nothing to a
// store that is known to be away: it waits as long as ctx allows, and so it is
// certain that nothing was changed if the store does not come back.
func (d *Daemon) update(ctx context.Context, fn func(*store.Tx) error) error {
	if err := d.store.Contact(ctx); err != nil {
		return err
	}
	if err := d.store.Update(ctx, fn); !errors.Is(err, errAlready) {
		return err
	}
	return nil
}
