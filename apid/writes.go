package apid

import (
	"context"
	"fmt"
	"sync"

	"github.com/musterhq/muster/internal/kv"
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
// counts as away.
func (d *Daemon) writing(ctx context.Context) (context.Context, context.CancelFunc) {
	end := d.writes.begin()
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.WriteTimeout,
		fmt.Errorf("no answer within %v: %w", d.cfg.WriteTimeout, kv.ErrUnavailable))
	return ctx, func() {
		cancel()
		end()
	}
}
