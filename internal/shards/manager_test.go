package shards_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
)

func TestNewNamesEveryInvalidField(t *testing.T) {
	_, err := shards.New(shards.Config{Shards: -1})
	if err == nil {
		t.Fatal("New accepted nothing")
	}
	for _, field := range []string{"KV", "Prefix", "Subsystem", "Member.Instance", "Session", "Logger", "Shards"} {
		if !strings.Contains(err.Error(), "field "+field+" ") {
			t.Errorf("New error does not name %s: %v", field, err)
		}
	}
}

func TestOnlyReplicaOwnsAllShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		a := c.join()
		c.settled(a)
		if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, a.manager.Owned()); diff != "" {
			t.Errorf("Owned (-want +got):\n%s", diff)
		}
	})
}

func TestJoinMovesOnlyTheNewShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		a := c.join()
		c.settled(a)
		before := c.begun
		c.settled(a, c.join())
		if moves := c.begun - before; moves != 8 {
			t.Errorf("work started %d times after a second replica joined, want 8", moves)
		}
	})
}

func TestLeavingReplicasKeepSharesEvenAndLeaveNoKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		a, b, d := c.join(), c.join(), c.join()
		c.settled(a, b, d)
		a.leave()
		c.settled(b, d)
		b.leave()
		d.leave()
		if left := c.keys(prefix); len(left) != 0 {
			t.Errorf("keys remain after all replicas left: %v", left)
		}
		c.check()
	})
}

func TestOneShardHasOneLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		replicas := []*replica{c.join(), c.join(), c.join()}
		for len(replicas) > 0 {
			c.until(func() bool { return len(c.held()) == 1 && c.even(replicas...) })
			leads := slices.IndexFunc(replicas, func(r *replica) bool { return c.held()[r.name] == 1 })
			c.crash(replicas[leads])
			replicas = slices.Delete(replicas, leads, leads+1)
		}
	})
}

func TestCrashedReplicaIsReplacedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		a, b := c.join(), c.join()
		c.settled(a, b)
		c.crash(a)
		took := c.settled(b)
		if took > time.Second {
			t.Errorf("shards of the crashed replica got an owner after %v, want at most 1s", took)
		}
	})
}

// TestLostSessionStopsWorkAndRejoins ends the session of a running replica.
func TestLostSessionStopsWorkAndRejoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		a, b := c.join(), c.join()
		c.settled(a, b)
		for range 3 {
			c.loseSession(a)
			synctest.Wait()
			if owned := a.manager.Owned(); len(owned) != 0 {
				t.Errorf("Owned = %v after the session was lost, want none", owned)
			}
			c.settled(a, b)
		}
	})
}

// TestHoldsAsksTheStore: of a replica's own shard, of another replica's, of one whose
// lock was deleted, and without a store.
func TestHoldsAsksTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		a, b := c.join(), c.join()
		c.settled(a, b)
		own, other := a.manager.Owned()[0], b.manager.Owned()[0]
		expect := func(shard int, want bool) {
			t.Helper()
			if got, err := a.manager.Holds(t.Context(), shard); got != want || err != nil {
				t.Errorf("Holds(%d) = %t, %v, want %t", shard, got, err, want)
			}
		}
		expect(own, true)
		expect(other, false)
		lock := fmt.Sprintf("%s/locks/%s/%d", prefix, subsystem, own)
		if _, err := c.store.Txn(t.Context(), []kv.Op{{Verb: kv.Delete, Key: lock}}); err != nil {
			t.Fatal(err)
		}
		expect(own, false)
		mend := a.kv.Cut()
		if _, err := a.manager.Holds(t.Context(), own); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("Holds without a store: error = %v, want ErrUnavailable", err)
		}
		mend()
	})
}

// TestLockIsKeptUntilWorkHasReturned: also when another replica waits for it, and when
// this one leaves.
func TestLockIsKeptUntilWorkHasReturned(t *testing.T) {
	for name, leave := range map[string]func(*cluster, *replica){
		"HandedOver": func(c *cluster, _ *replica) { c.join() },
		"Leaves":     func(c *cluster, a *replica) { a.leave() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const slow = 5 * time.Second
				c := newCluster(t, 4)
				a := c.join(func(r *replica) { r.slow = slow })
				c.settled(a)
				b := c.join()
				began := time.Now()
				leave(c, a)
				c.until(func() bool { return c.held()[b.name] > 0 })
				if took := time.Since(began); took < slow || took > slow+time.Second {
					t.Errorf("the shard got a new owner after %v, want within a second after %v", took, slow)
				}
			})
		})
	}
}

func TestFailedWorkIsRestartedAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		tries := 0
		a := c.join(func(r *replica) {
			r.fail = func(shard int) error {
				if shard != 2 || tries == 3 {
					return nil
				}
				tries++
				return errors.New("broken by the test")
			}
		})
		began := time.Now()
		c.settled(a)
		if took := time.Since(began); tries != 3 || took < 2*time.Second || took > 10*time.Second {
			t.Errorf("work ran after %d failures and %v, want 3 failures with pauses of about 1s", tries, took)
		}
	})
}

// TestWorkContinuesWhileStoreFails breaks the store of one replica in different ways for
// some time. The work is not disturbed, and the shares become even afterwards.
func TestWorkContinuesWhileStoreFails(t *testing.T) {
	gone := errors.Join(errors.New("broken by the test"), kv.ErrUnavailable)
	for name, fault := range map[string]kvfault.Fault{
		"Gone":           {Err: gone},
		"Slow":           {Delay: 300 * time.Millisecond},
		"ListsFail":      {Op: kvfault.List, Err: gone},
		"AcquiresFail":   {Op: kvfault.Acquire, Err: gone},
		"AcquiresUnseen": {Op: kvfault.Acquire, Err: gone, Applied: true},
		"ReleasesFail":   {Op: kvfault.Release, Err: gone},
		"ReleasesUnseen": {Op: kvfault.Release, Err: gone, Applied: true},
		"SessionsFail":   {Op: kvfault.Session, Err: gone},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 8)
				a := c.join()
				c.settled(a)
				begun := c.begun
				mend := a.kv.Inject(fault)
				<-time.After(time.Minute)
				synctest.Wait()
				if !c.even(a) || c.begun != begun {
					t.Errorf("the failing store disturbed the work: shards by replica %v, %d restarts", c.held(), c.begun-begun)
				}
				b := c.join()
				<-time.After(3 * time.Second)
				c.loseSession(a)
				<-time.After(3 * time.Second)
				mend()
				took := c.settled(a, b)
				if took > 5*time.Second {
					t.Errorf("shares were even %v after the store recovered, want at most 5s", took)
				}
			})
		})
	}
}

func TestRunReturnsWhileStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8)
		a := c.join()
		c.settled(a)
		a.kv.Inject(kvfault.Fault{Hang: true})
		a.cancel()
		synctest.Wait()
		if held := c.held(); len(held) != 0 {
			t.Errorf("work continues after the manager's context ended: %v", held)
		}
		began := time.Now()
		<-a.ended
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Run returned after %v, want at most 5s", took)
		}
	})
}

func TestDeletedMemberRecordsAreWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8)
		a, b := c.join(), c.join()
		c.settled(a, b)
		for _, key := range c.keys(prefix + "/members/") {
			if _, err := c.store.Txn(t.Context(), []kv.Op{{Verb: kv.Delete, Key: key}}); err != nil {
				t.Fatal(err)
			}
		}
		c.until(func() bool { return len(c.keys(prefix+"/members/")) == 2 && c.even(a, b) })
	})
}

func TestMetricCountsOwnedShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := embedded.Open(embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		registry := prometheus.NewRegistry()
		m, err := shards.New(shards.Config{
			KV: store, Prefix: prefix, Subsystem: subsystem, Member: shards.Member{Instance: "a"}, Logger: zap.NewNop(),
			Session:    func(ctx context.Context) (kv.Session, error) { return store.NewSession(ctx, kv.SessionConfig{}) },
			Registerer: registry,
		})
		if err != nil {
			t.Fatal(err)
		}
		expect := func(want float64) {
			t.Helper()
			synctest.Wait()
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			if got := families[0].GetMetric()[0].GetGauge().GetValue(); families[0].GetName() != "muster_shards_owned" || got != want {
				t.Errorf("%s = %v, want %v", families[0].GetName(), got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- m.Run(ctx, func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return nil
			})
		}()
		expect(16)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		expect(0)
	})
}
