package store_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/consultest"
)

// TestUpdatesAreAppliedOnceWhileServerFails increments a counter through three stores
// while their Consul server is killed, restarted, paused and resumed. Updates without an
// error must be applied exactly once.
func TestUpdatesAreAppliedOnceWhileServerFails(t *testing.T) {
	server := consultest.Start(t)
	table := numbers("counters")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var done, unknown atomic.Int64
	for range 3 {
		s, _ := open(t, store.Options{KV: server.KV(t)}, table)
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					short, cancel := context.WithTimeout(ctx, 2*time.Minute)
					err := s.Update(short, increment(table, "n"))
					cancel()
					switch {
					case err == nil:
						done.Add(1)
					case errors.Is(err, store.ErrOutcomeUnknown):
						unknown.Add(1)
					case ctx.Err() == nil:
						t.Errorf("update: %v", err)
					}
				}
			})
		}
	}
	reach := func(n int64) {
		t.Helper()
		deadline := time.NewTimer(2 * time.Minute)
		defer deadline.Stop()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for done.Load() < n {
			select {
			case <-tick.C:
			case <-deadline.C:
				t.Fatalf("%d updates succeeded, want %d", done.Load(), n)
			}
		}
	}
	do := func(what string, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for range 2 {
		reach(done.Load() + 50)
		do("kill", server.Kill)
		do("restart", server.Restart)
		reach(done.Load() + 50)
		do("pause", server.Pause)
		<-time.After(time.Second)
		do("resume", server.Resume)
	}
	reach(done.Load() + 50)
	stop()
	wg.Wait()
	last, _ := open(t, store.Options{KV: server.KV(t)}, table)
	n := int64(count(table, last.Snapshot(), "n"))
	if n < done.Load() || n > done.Load()+unknown.Load() {
		t.Errorf("counter = %d, but %d updates succeeded and %d have an unknown outcome", n, done.Load(), unknown.Load())
	}
	t.Logf("%d updates succeeded and %d have an unknown outcome", done.Load(), unknown.Load())
}
