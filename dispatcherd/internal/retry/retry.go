// Package retry spaces attempts at the store.
package retry

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Backoff waits longer after each failed attempt. The times are random, so that
// shards and replicas do not retry at the same moment.
type Backoff struct{ intervals *backoff.ExponentialBackOff }

// NewBackoff returns a backoff for the first attempt.
func NewBackoff() Backoff {
	b := Backoff{backoff.NewExponentialBackOff()}
	b.intervals.InitialInterval = 50 * time.Millisecond
	b.intervals.MaxInterval = 2 * time.Second
	b.intervals.Multiplier = 2
	return b
}

// Reset begins again with the shortest time.
func (b Backoff) Reset() { b.intervals.Reset() }

// Wait waits after a failed attempt, until ctx ends at the latest.
func (b Backoff) Wait(ctx context.Context) {
	t := time.NewTimer(b.intervals.NextBackOff())
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
