package shards_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

// TestRepeatedFailuresAreLoggedOnce makes the store unavailable for five minutes, twice.
// Each time, there is one warning at the start and one line with the duration at the end.
func TestRepeatedFailuresAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		c := newCluster(t, 8)
		a := c.join(func(r *replica) { r.log = zap.New(core) })
		c.settled(a)
		for round := 1; round <= 2; round++ {
			mend := a.kv.Inject(kvfault.Fault{Err: errors.Join(errors.New("broken by the test"), kv.ErrUnavailable)})
			c.loseSession(a)
			<-time.After(5 * time.Minute)
			if n := logs.FilterMessage("failed to maintain shard locks; retrying").Len(); n != round {
				t.Errorf("%d warnings that locks cannot be maintained, want %d", n, round)
			}
			mend()
			c.settled(a)
			recovered := logs.FilterMessage("shard locks are maintained again").All()
			if len(recovered) != round {
				t.Fatalf("%d lines that locks are maintained again, want %d", len(recovered), round)
			}
			fields := recovered[round-1].ContextMap()
			if n := fields["failures"].(int64); n < 100 {
				t.Errorf("failures in five minutes = %d, want at least 100", n)
			}
			if after := fields["after"].(time.Duration); after < 4*time.Minute {
				t.Errorf("duration of the failures = %v, want about five minutes", after)
			}
		}
		if n := logs.FilterLevelExact(zap.WarnLevel).Len(); n > 4 {
			t.Errorf("%d warnings, want at most 4: %v", n, logs.FilterLevelExact(zap.WarnLevel).All())
		}
	})
}
