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

// TestHangingKVIsNoticed lets a kv hang, so that its blocked lists stay as they
// are: no error tells that nothing will come of them.
func TestHangingKVIsNoticed(t *testing.T) {
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
			t.Errorf("status = %+v of a kv that has hung for 30 s", st)
		}
		if err := s.WaitAvailable(t.Context()); err != nil {
			t.Errorf("WaitAvailable error = %v of a kv that may be slow and nothing else", err)
		}
		resume()
		time.Sleep(5 * time.Second)
		if st := s.Status(); st.Lag() != 0 || st.Err != nil {
			t.Errorf("status = %+v after the kv went on", st)
		}
	})
}

// TestContact waits for a kv that is away.
func TestContact(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		s, _ := open(t, store.Options{KV: k}, numbers("counters"))
		if err := s.WaitAvailable(t.Context()); err != nil {
			t.Errorf("WaitAvailable error = %v while there is contact", err)
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

// deaf is a kv whose lists that wait for a change wait forever, as those do of a
// server that is cut off from its leader and from its clients' changes.
type deaf struct{ kv.KV }

func (d deaf) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if opt.After > 0 {
		<-ctx.Done()
		return nil, 0, context.Cause(ctx)
	}
	return d.KV.List(ctx, prefix, opt)
}

// TestDeafWatchIsHelped: what the watch does not show is found by other means,
// and until then it is known how much is missing.
func TestDeafWatchIsHelped(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		table, other := numbers("counters"), numbers("others")
		writer, _ := open(t, store.Options{KV: k}, table, other)
		s, _ := open(t, store.Options{KV: deaf{k}}, table, other)
		// Not at the moment at which the store looks how far its view is behind.
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
			t.Errorf("newest = %v, want %v, 3 commits in all", got, want)
		}
		if got := sum(s.AppliedSequences()["counters"]); got != 0 {
			t.Errorf("%d commits reached a watch that shows nothing", got)
		}
		var most uint64
		began := time.Now()
		for count(table, s.Snapshot(), "n") != 3 {
			if time.Since(began) > 10*time.Second {
				t.Fatal("the view never came up to the kv")
			}
			st := s.Status()
			if most = max(most, st.Behind); st.BehindFor > 2*time.Second {
				t.Errorf("status = %+v: it should not have taken that long", st)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if most != 3 {
			t.Errorf("the view was reported as %d commits behind at most, want 3", most)
		}
		if st := s.Status(); st.Behind != 0 || st.Lag() != 0 {
			t.Errorf("status = %+v when nothing is missing", st)
		}
	})
}

func sum(seqs []uint64) (n uint64) {
	for _, s := range seqs {
		n += s
	}
	return n
}
