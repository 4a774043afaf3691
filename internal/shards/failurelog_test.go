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

// TestTroubleIsToldOnce has the store be away for five minutes, twice: the log says
// so when it goes, and when it is back for how long it was gone.
func TestTroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		c := newCluster(t, 8)
		a := c.join(func(r *replica) { r.log = zap.New(core) })
		c.settled(a)
		for round := 1; round <= 2; round++ {
			mend := a.kv.Inject(kvfault.Fault{Err: errors.Join(errors.New("broken by the test"), kv.ErrUnavailable)})
			c.loseSession(a)
			<-time.After(5 * time.Minute)
			if told := logs.FilterMessageSnippet("cannot be looked after").Len(); told != round {
				t.Errorf("it was told %d times that the store is away, want %d", told, round)
			}
			mend()
			c.settled(a)
			back := logs.FilterMessageSnippet("looked after again").All()
			if len(back) != round {
				t.Fatalf("it was told %d times that the store is back, want %d", len(back), round)
			}
			said := back[round-1].ContextMap()
			if n := said["failures"].(int64); n < 100 {
				t.Errorf("%d failures were counted in five minutes", n)
			}
			if after := said["after"].(time.Duration); after < 4*time.Minute {
				t.Errorf("the trouble lasted for %v, want some five minutes", after)
			}
		}
		if n := logs.FilterLevelExact(zap.WarnLevel).Len(); n > 4 {
			t.Errorf("%d warnings for two absences: %v", n, logs.FilterLevelExact(zap.WarnLevel).All())
		}
	})
}
