package dispatcherd

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	retryFirst = 50 * time.Millisecond
	retryMost  = 2 * time.Second
)

// backoff waits ever longer between attempts at the store, with jitter, so
// that shards and replicas do not march in step.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{retryFirst} }

func (b *backoff) reset() { b.next = retryFirst }

func (b *backoff) wait(ctx context.Context) {
	t := time.NewTimer(b.next/2 + rand.N(b.next/2))
	defer t.Stop()
	b.next = min(2*b.next, retryMost)
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
