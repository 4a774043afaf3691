// Package quota bounds what each client, which a key names, may do: how often (Rate),
// and how much at the same time (Open). A nil bound bounds nothing.
package quota

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// maxClients is the number of clients that a Rate remembers, in about 2 MB.
const maxClients = 10_000

// Rate gives each client a bucket of tokens, of which a call takes one. It forgets
// clients whose bucket is full again, because a new one is as full.
type Rate struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex
	known *simplelru.LRU[string, *rate.Limiter]
}

// NewRate returns the bound of so many calls a second, and of burst calls at once; nil
// if perSecond is 0.
func NewRate(perSecond float64, burst int) *Rate { return newRate(perSecond, burst, maxClients) }

func newRate(perSecond float64, burst, clients int) *Rate {
	// The only error is a size below 1.
	known, err := simplelru.NewLRU[string, *rate.Limiter](clients, nil)
	if perSecond <= 0 || err != nil {
		return nil
	}
	return &Rate{limit: rate.Limit(perSecond), burst: burst, known: known}
}

// Take takes a token of a client, or returns the time until there is one.
func (r *Rate) Take(client string) time.Duration {
	if r == nil {
		return 0
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	// Two for each call, so that clients become fewer while others come.
	for range 2 {
		if oldest, tokens, ok := r.known.GetOldest(); ok && tokens.TokensAt(now) >= float64(r.burst) {
			r.known.Remove(oldest)
		}
	}
	tokens, ok := r.known.Get(client)
	if !ok {
		// It may replace the client that has not called for longest: refusing all new
		// clients because there are many would be worse.
		tokens = rate.NewLimiter(r.limit, r.burst)
		r.known.Add(client, tokens)
	}
	reserved := tokens.ReserveN(now, 1)
	wait := reserved.DelayFrom(now)
	if wait > 0 {
		reserved.CancelAt(now)
	}
	return wait
}
