package limit

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// most is how many clients are remembered: some 2 MB of them.
const most = 10_000

// buckets give each client a bucket of tokens, of which a call takes one. A client
// whose bucket is full again is forgotten, for a new one is as full.
type buckets struct {
	rate  rate.Limit
	burst int
	most  int

	mu sync.Mutex
	// known holds elements of order, whose first is who called last.
	known map[string]*list.Element
	order *list.List
}

type bucket struct {
	client string
	called time.Time
	tokens *rate.Limiter
}

// newBuckets returns none for a rate of 0: what is nil bounds nothing.
func newBuckets(perSecond float64, burst, most int) *buckets {
	if perSecond <= 0 {
		return nil
	}
	return &buckets{rate: rate.Limit(perSecond), burst: burst, most: most, known: map[string]*list.Element{}, order: list.New()}
}

// take takes a token, or returns in what time there will be one.
func (b *buckets) take(client string) time.Duration {
	if b == nil {
		return 0
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(now)
	e, ok := b.known[client]
	if !ok {
		if len(b.known) >= b.most {
			// Better to be kind to who has not called for longest than to refuse strangers
			// because there are many.
			b.drop(b.order.Back())
		}
		e = b.order.PushFront(&bucket{client: client, tokens: rate.NewLimiter(b.rate, b.burst)})
		b.known[client] = e
	}
	b.order.MoveToFront(e)
	held, _ := e.Value.(*bucket)
	held.called = now
	return takeFrom(held.tokens, now)
}

// forget drops clients whose buckets are full again: two for each call, so that
// they become fewer while others become more.
func (b *buckets) forget(now time.Time) {
	for range 2 {
		last := b.order.Back()
		if last == nil {
			return
		}
		if held, _ := last.Value.(*bucket); held.tokens.TokensAt(now) < float64(b.burst) {
			return
		}
		b.drop(last)
	}
}

func (b *buckets) drop(e *list.Element) {
	held, _ := b.order.Remove(e).(*bucket)
	delete(b.known, held.client)
}

// takeFrom takes a token of one bucket, or returns in what time there will be one.
func takeFrom(tokens *rate.Limiter, now time.Time) time.Duration {
	r := tokens.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}
