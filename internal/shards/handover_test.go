package shards_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv/kvfault"
)

// mostTrips is how many round trips to the store pass until others work on the
// shards of a replica: it gives back its record and its locks; the others, whom the
// store wakes, look once more, and take all that is theirs at once. So they have
// them within 0.3 s wherever the store answers in 60 ms.
const mostTrips = 5

// TestTakeOverWaitsForNothing has a replica leave, and another die, over stores
// that take their time for an answer: what passes until others work on its shards
// is some round trips to the store and nothing else, however long those are.
func TestTakeOverWaitsForNothing(t *testing.T) {
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
						// Shares may be even by chance, and then change once more.
						c.settled(append(rest, first)...)
						<-time.After(20 * trip)
						c.settled(append(rest, first)...)
						began := time.Now()
						end(c, first)
						c.settled(rest...)
						if took := time.Since(began); took > mostTrips*trip {
							t.Errorf("%d others work on all shards after %v, want %d round trips of %v at most", others, took, mostTrips, trip)
						}
					})
				})
			}
		}
	}
}
