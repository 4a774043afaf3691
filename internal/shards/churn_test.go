package shards_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

// step is one event in a cluster.
type step struct {
	What  string
	Which int           // index among the running replicas
	After time.Duration // since the previous step
}

// steps draws a sequence of events.
var steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
	return step{
		What:  rapid.SampledFrom([]string{"join", "join", "join slow", "leave", "crash", "lose session", "cut", "unseen", "slow store"}).Draw(t, "what"),
		Which: rapid.IntRange(0, 9).Draw(t, "which"),
		After: time.Duration(rapid.SampledFrom([]int{0, 1, 15, 60, 300, 2000, 20000}).Draw(t, "after")) * time.Millisecond,
	}
}), 1, 25)

// TestChurnKeepsOneWorkerPerShard lets replicas join, leave, crash and lose their
// session or store at random. Two replicas never work on one shard at a time, unless
// the session of the first has ended. When the churn stops, the shares become even.
func TestChurnKeepsOneWorkerPerShard(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		shards := rapid.SampledFrom([]int{1, 4, 16}).Draw(rt, "shards")
		happens := steps.Draw(rt, "steps")
		var faults []string
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, shards)
			// Faults are reported outside of the bubble, so that rapid can shrink
			// the steps.
			c.errorf = func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
			churn(c, happens)
		})
		for _, f := range faults {
			rt.Error(f)
		}
	})
}

func churn(c *cluster, happens []step) {
	replicas := []*replica{c.join()}
	for _, s := range happens {
		<-time.After(s.After)
		if s.What == "join" && len(replicas) < 6 {
			replicas = append(replicas, c.join())
			continue
		}
		if s.What == "join slow" && len(replicas) < 6 {
			replicas = append(replicas, c.join(func(r *replica) { r.slow = 700 * time.Millisecond }))
			continue
		}
		if len(replicas) == 0 {
			continue
		}
		i := s.Which % len(replicas)
		r := replicas[i]
		broken := kvfault.Fault{Times: 5, Err: errors.Join(errors.New("broken by the test"), kv.ErrUnavailable)}
		switch s.What {
		case "leave":
			replicas = slices.Delete(replicas, i, i+1)
			c.leave(r)
		case "crash":
			replicas = slices.Delete(replicas, i, i+1)
			c.crash(r)
		case "lose session":
			c.loseSession(r)
		case "cut":
			time.AfterFunc(3*time.Second, r.kv.Cut())
		case "unseen":
			broken.Applied = true
			r.kv.Inject(broken)
		case "slow store":
			r.kv.Inject(kvfault.Fault{Times: 10, Delay: 400 * time.Millisecond})
		}
	}
	if len(replicas) > 0 {
		c.settled(replicas...)
	}
	for _, r := range replicas {
		c.leave(r)
	}
	c.check()
	if left := c.keys(prefix); len(left) != 0 {
		c.errorf("keys remain after all replicas left: %v", left)
	}
}

// leave stops a replica. If it could not close its session because it had lost the
// store, the session expires.
func (c *cluster) leave(r *replica) {
	r.leave()
	if err := r.kv.LoseSessions(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}
