package retry_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/dispatcherd/internal/retry"
)

func TestWaitsGrowUpToALimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBackoff()
		wait := func(ctx context.Context) time.Duration {
			began := time.Now()
			b.Wait(ctx)
			return time.Since(began)
		}
		if took := wait(t.Context()); took < 25*time.Millisecond || took > 75*time.Millisecond {
			t.Errorf("the first wait took %s, want about 50ms", took)
		}
		for range 10 {
			wait(t.Context())
		}
		if took := wait(t.Context()); took < time.Second || took > 3*time.Second {
			t.Errorf("a late wait took %s, want about 2s", took)
		}
		b.Reset()
		if took := wait(t.Context()); took > 75*time.Millisecond {
			t.Errorf("the first wait after a success took %s, want about 50ms", took)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if took := wait(ended); took != 0 {
			t.Errorf("a wait whose context has ended took %s", took)
		}
	})
}
