// Package wait is where tests wait for what other processes, or other
// goroutines in real time, do. A test that can, runs on virtual time instead
// (testing/synctest) and waits for nothing.
package wait

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// patience bounds what should take moments, on a machine that is busy.
const patience = 2 * time.Minute

// The pause between two looks grows with the time that was waited, so that what is
// measured is at most a twentieth longer than it was, and a long wait costs little.
const (
	shortest = 200 * time.Microsecond
	longest  = 25 * time.Millisecond
	share    = 20
)

// errNotYet is that of a look that only says yes or no.
var errNotYet = errors.New("it does not hold yet")

// Until looks again and again until look returns no error, or ctx ends: then it
// returns the last error that look had a chance to see.
func Until(ctx context.Context, look func(context.Context) error) error {
	began := time.Now()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		// A look that ended only because the time was over says nothing.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-time.After(min(max(time.Since(began)/share, shortest), longest)):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), last)
		}
	}
}

// Within fails the test with the last error unless look returns none within a
// time. What look asks of others ends with that time, too. It returns how long
// that took.
func Within(t testing.TB, within time.Duration, what string, look func(context.Context) error) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := Until(ctx, look); err != nil {
		t.Fatalf("%s: not within %v: %v", what, within, err)
	}
	return time.Since(began)
}

// True fails the test unless something becomes true within moments.
func True(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Until(ctx, func(context.Context) error {
		if !holds() {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatalf("not within %v: %s", patience, what)
	}
}
