package store_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// TestStatusShowsThatTheKVHangs: a kv that hangs returns no error to blocked lists, so
// only the probe can notice it.
func TestStatusShowsThatTheKVHangs(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		table := numbers("counters")
		s, _ := open(t, store.Options{KV: k}, table)
		synctest.Wait()
		if st := s.Status(); !st.Loaded || st.Lag() != 0 || st.Err != nil {
			t.Errorf("status = %+v while in contact", st)
		}
		resume := k.Inject(kvfault.Fault{Hang: true})
		time.Sleep(30 * time.Second)
		if st := s.Status(); st.Stale < 28*time.Second || st.Stale > 32*time.Second || !errors.Is(st.Err, kv.ErrUnavailable) {
			t.Errorf("status = %+v after the kv hung for 30s, want it stale for 30s and ErrUnavailable", st)
		}
		if err := s.WaitAvailable(t.Context()); err != nil {
			t.Errorf("WaitAvailable error = %v, want none: the kv may only be slow", err)
		}
		resume()
		time.Sleep(5 * time.Second)
		if st := s.Status(); st.Lag() != 0 || st.Err != nil {
			t.Errorf("status = %+v after the kv answers again, want no lag and no error", st)
		}
	})
}

func TestWaitAvailableBlocksWhileKVIsUnavailable(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		s, _ := open(t, store.Options{KV: k}, numbers("counters"))
		if err := s.WaitAvailable(t.Context()); err != nil {
			t.Errorf("WaitAvailable error = %v while the kv is available", err)
		}
		mend := k.Cut()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.WaitAvailable(short); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("WaitAvailable error = %v, want the context's and ErrUnavailable", err)
		}
		back := make(chan error, 1)
		go func() { back <- s.WaitAvailable(t.Context()) }()
		mend()
		if err := <-back; err != nil {
			t.Error(err)
		}
	})
}

// silentWatches is a kv whose blocking lists never return, like those of a server that
// has lost its leader.
type silentWatches struct{ kv.KV }

func (d silentWatches) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if opt.After > 0 {
		<-ctx.Done()
		return nil, 0, context.Cause(ctx)
	}
	return d.KV.List(ctx, prefix, opt)
}

// TestChangesAreFoundWithoutTheWatch: the probe finds changes that the watch does not
// show. Until they are read, Status says how many commits the snapshot lacks.
func TestChangesAreFoundWithoutTheWatch(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		table, other := numbers("counters"), numbers("others")
		writer, _ := open(t, store.Options{KV: k}, table, other)
		s, _ := open(t, store.Options{KV: silentWatches{k}}, table, other)
		// The updates must not be made at the moment of a probe.
		time.Sleep(time.Millisecond)
		for range 3 {
			if err := writer.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
		}
		newest, err := s.LeaderSequences(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := newest["counters"], writer.AppliedSequences()["counters"]; !slices.Equal(got, want) || sum(got) != 3 {
			t.Errorf("LeaderSequences = %v, want %v with 3 commits in all", got, want)
		}
		if got := sum(s.AppliedSequences()["counters"]); got != 0 {
			t.Errorf("the snapshot shows %d commits before a probe, want none", got)
		}
		var most uint64
		began := time.Now()
		for count(table, s.Snapshot(), "n") != 3 {
			if time.Since(began) > 10*time.Second {
				t.Fatal("the snapshot lacks the commits after 10s")
			}
			st := s.Status()
			if most = max(most, st.Behind); st.BehindFor > 2*time.Second {
				t.Errorf("status = %+v, want it behind for at most 2s", st)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if most != 3 {
			t.Errorf("Status reported at most %d missing commits, want 3", most)
		}
		if st := s.Status(); st.Behind != 0 || st.Lag() != 0 {
			t.Errorf("status = %+v of a complete snapshot, want no lag", st)
		}
	})
}

func sum(seqs []uint64) (n uint64) {
	for _, s := range seqs {
		n += s
	}
	return n
}
