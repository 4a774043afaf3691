package e2e_test

import (
	"context"
	"testing"
	"time"
)

// lookEvery is how often eventually looks: often enough that what is measured
// with it is not much longer than it was.
const lookEvery = 25 * time.Millisecond

// eventually looks again and again until look returns no error, and fails the
// test with the last one when the time is over. It returns how long that took.
// What look asks of others ends with that time, too.
// It is the one place where these tests wait for what other processes do.
func eventually(t *testing.T, within time.Duration, what string, look func(context.Context) error) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := look(ctx)
		if err == nil {
			return time.Since(began)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}
