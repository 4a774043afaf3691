// Package backoff waits between attempts, each time longer and with jitter, so
// that replicas do not repeat failed calls in step.
package backoff

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Backoff is the pause after failures in a row. It doubles with each failure. It
// is not safe for concurrent use.
type Backoff struct {
	exponential backoff.ExponentialBackOff
}

// New returns a Backoff whose first pause is between half of first and first,
// and whose later ones are between half of longest and longest at most.
func New(first, longest time.Duration) *Backoff {
	// The library spreads a pause by a third to both sides of three quarters.
	return &Backoff{backoff.ExponentialBackOff{
		InitialInterval:     first * 3 / 4,
		MaxInterval:         longest * 3 / 4,
		Multiplier:          2,
		RandomizationFactor: 1.0 / 3,
	}}
}

// Reset makes the next pause the first one. It must be called after a success.
func (b *Backoff) Reset() { b.exponential.Reset() }

// Next returns the pause after one more failure.
func (b *Backoff) Next() time.Duration { return b.exponential.NextBackOff() }

// Wait waits for the pause after one more failure. It returns the cause of ctx
// if ctx ends earlier.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Sleep waits for d. It returns the cause of ctx if ctx ends earlier.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
