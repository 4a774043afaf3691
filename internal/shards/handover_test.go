package shards_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv/kvfault"
)

// maxTrips is how many round trips to the store a takeover may take. The replica
// releases its record and its locks. The store wakes the others, which list the locks
// and acquire all of their new shards in parallel. With a store that answers in 60 ms,
// a takeover takes 0.3 s.
const maxTrips = 5

// TestTakeoverTakesAFewRoundTrips ends replicas over stores with different latencies:
// a takeover takes no time besides its round trips to the store.
func TestTakeoverTakesAFewRoundTrips(t *testing.T) {
	for name, end := range map[string]func(*cluster, *replica){
		"leaves": func(_ *cluster, r *replica) { r.cancel() },
		"its session ends": func(c *cluster, r *replica) {
			r.kv.Cut()
			c.loseSession(r)
			r.cancel()
		},
	} {
		for _, others := range []int{1, 2, 5} {
			for _, trip := range []time.Duration{time.Millisecond, 60 * time.Millisecond, time.Second} {
				t.Run(fmt.Sprintf("%s, %d others, %v", name, others, trip), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						c := newCluster(t, 16)
						slow := func(r *replica) { r.kv.Inject(kvfault.Fault{Delay: trip}) }
						first := c.join(slow)
						rest := make([]*replica, others)
						for i := range rest {
							rest[i] = c.join(slow)
						}
						// Shares may be even for a moment before the last change.
						c.settled(append(rest, first)...)
						<-time.After(20 * trip)
						c.settled(append(rest, first)...)
						began := time.Now()
						end(c, first)
						c.settled(rest...)
						if took := time.Since(began); took > maxTrips*trip {
							t.Errorf("%d other replicas work on all shards after %v, want at most %d round trips of %v", others, took, maxTrips, trip)
						}
					})
				})
			}
		}
	}
}
