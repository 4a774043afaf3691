package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// errAway is the error of an unavailable kv.
var errAway = fmt.Errorf("away: %w", kv.ErrUnavailable)

// increment returns an update that increments a counter.
func increment(table *store.Table[int], key string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		e, _ := table.Get(tx, key)
		table.Put(tx, key, e.Value+1)
		return nil
	}
}

func count(table *store.Table[int], r store.Reader, key string) int {
	e, _ := table.Get(r, key)
	return e.Value
}

// bubble runs a test in virtual time, on a kv that can be made to fail.
func bubble(t *testing.T, test func(t *testing.T, k *kvfault.KV)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, kvfault.New(newKV(t))) })
}

// TestUpdatesWhileKVIsUnavailable: an update whose context ends has an unknown outcome and
// is not applied later; one that waits is applied once the kv is available again.
func TestUpdatesWhileKVIsUnavailable(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		table := numbers("counters")
		s, _ := open(t, store.Options{KV: k}, table)
		other, _ := open(t, store.Options{KV: k}, table)
		if err := s.Update(t.Context(), increment(table, "n")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d := s.Staleness(); d != 0 {
			t.Errorf("staleness=%v while the kv is available, want 0", d)
		}

		mend := k.Cut()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := s.Update(ctx, increment(table, "n"))
		if !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrOutcomeUnknown) {
			t.Errorf("err=%v, want ErrUnavailable, ErrOutcomeUnknown and the context's", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("Update returned after %v, want 10s", d)
		}
		if d := s.Staleness(); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("staleness=%v, want 10s", d)
		}
		if n := count(table, s.Snapshot(), "n"); n != 1 {
			t.Errorf("n=%d in the last snapshot, want 1", n)
		}

		// An update that is made during the outage is applied after it.
		later := make(chan error, 1)
		go func() { later <- s.Update(t.Context(), increment(table, "n")) }()
		time.Sleep(time.Minute)
		mend()
		if err := <-later; err != nil {
			t.Error(err)
		}
		if n := count(table, s.Snapshot(), "n"); n != 2 {
			t.Errorf("n=%d, want 2: the cancelled update must not be applied", n)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if d := s.Staleness() + other.Staleness(); d != 0 {
			t.Errorf("staleness=%v after the kv recovered, want 0", d)
		}
		if n := count(table, other.Snapshot(), "n"); n != 2 {
			t.Errorf("n=%d in the other store, want 2", n)
		}
	})
}

func TestReadyWaitsForTheKV(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		mend := k.Cut()
		table := numbers("counters")
		s, err := store.New(store.Options{KV: k}, table)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		short, cancelShort := context.WithTimeout(ctx, time.Minute)
		defer cancelShort()
		if err := s.Ready(short); !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err=%v, want ErrUnavailable and the context's", err)
		}
		if d := s.Staleness(); d != time.Minute {
			t.Errorf("staleness=%v, want 1m", d)
		}
		mend()
		if err := s.Ready(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Update(t.Context(), increment(table, "n")); !errors.Is(err, store.ErrClosed) {
			t.Errorf("err=%v after Run has returned, want ErrClosed", err)
		}
	})
}

// TestUpdateIsAppliedOnceWhenItsAnswerIsLost breaks the answer to a commit in several ways.
// An update without an error must be applied exactly once.
func TestUpdateIsAppliedOnceWhenItsAnswerIsLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault kvfault.Fault
	}{
		{"applied", kvfault.Fault{Times: 1, Applied: true, Err: errAway}},
		{"not applied", kvfault.Fault{Times: 1, Err: errAway}},
		{"applied, then away for a while", kvfault.Fault{Times: 1, Applied: true, Err: errAway, Delay: 5 * time.Second}},
		{"not applied several times", kvfault.Fault{Times: 5, Err: errAway}},
		{"never answered", kvfault.Fault{Times: 1, Applied: true, Hang: true}},
		{"slow", kvfault.Fault{Times: 2, Delay: 10 * time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, others := range []int{0, 1, 3} {
				bubble(t, func(t *testing.T, k *kvfault.KV) {
					table := numbers("counters")
					s, _ := open(t, store.Options{KV: k}, table)
					f := c.fault
					f.Op, f.When = kvfault.Txn, func(c kvfault.Call) bool { return c.Writes }
					k.Inject(f)
					// Others write to the same record, past the faults, as
					// soon as the commit has failed.
					done := make(chan struct{})
					go func() {
						defer close(done)
						time.Sleep(time.Millisecond)
						for range others {
							o, stop := open(t, store.Options{KV: k}, table)
							if err := o.Update(t.Context(), increment(table, "n")); err != nil {
								t.Error(err)
							}
							stop()
						}
					}()
					if err := s.Update(t.Context(), increment(table, "n")); err != nil {
						t.Error(err)
					}
					if count(table, s.Snapshot(), "n") == 0 {
						t.Error("the snapshot does not show the update")
					}
					<-done
					synctest.Wait()
					last, _ := open(t, store.Options{KV: k}, table)
					if n := count(table, last.Snapshot(), "n"); n != 1+others {
						t.Errorf("%d others: n=%d, want %d", others, n, 1+others)
					}
				})
			}
		})
	}
}

// TestOutcomeIsUnknownAfterManyOtherCommits: while a store waits for the outcome of a
// commit, so many others commit that the head no longer lists it.
func TestOutcomeIsUnknownAfterManyOtherCommits(t *testing.T) {
	for _, applied := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			table := numbers("counters")
			inner := newKV(t)
			k := kvfault.New(inner)
			s, _ := open(t, store.Options{KV: k}, table)
			// What the empty table's heads have others read is not to meet the fault.
			synctest.Wait()
			k.Inject(kvfault.Fault{Op: kvfault.Txn, Times: 1, Applied: applied, Delay: time.Second, Err: errAway})
			go func() {
				time.Sleep(time.Millisecond)
				for range 20 {
					o, stop := open(t, store.Options{KV: inner}, table)
					if err := o.Update(t.Context(), increment(table, "n")); err != nil {
						t.Error(err)
					}
					stop()
				}
			}()
			err := s.Update(t.Context(), increment(table, "n"))
			if !errors.Is(err, store.ErrOutcomeUnknown) {
				t.Errorf("applied=%t: err=%v, want ErrOutcomeUnknown", applied, err)
			}
			// It continues as if nothing had happened.
			if err := s.Update(t.Context(), increment(table, "m")); err != nil {
				t.Error(err)
			}
		})
	}
}

// late is a kv that reports its next transaction as unavailable and applies it later, like
// a request that was delayed in a queue.
type late struct {
	kv.KV
	next  atomic.Bool
	after time.Duration
	done  chan error
}

func (l *late) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if ops[0].Verb == kv.Get || !l.next.CompareAndSwap(true, false) {
		return l.KV.Txn(ctx, ops)
	}
	go func() {
		time.Sleep(l.after)
		_, err := l.KV.Txn(context.WithoutCancel(ctx), ops)
		l.done <- err
	}()
	return nil, errAway
}

func TestDelayedCommitIsAppliedOnce(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 7 * time.Millisecond, 20 * time.Millisecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			table := numbers("counters")
			k := &late{KV: newKV(t), after: after, done: make(chan error, 1)}
			s, _ := open(t, store.Options{KV: k}, table)
			for i := range 50 {
				k.next.Store(true)
				for range 2 {
					if err := s.Update(t.Context(), increment(table, "n")); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-k.done; err != nil && !errors.Is(err, kv.ErrConflict) {
					t.Fatal(err)
				}
				synctest.Wait()
				if n := count(table, s.Snapshot(), "n"); n != 2*(i+1) {
					t.Fatalf("after %v: n=%d, want %d", after, n, 2*(i+1))
				}
			}
		})
	}
}

// TestCancelledCommitThatIsAppliedLaterShows cancels an update whose transaction is applied
// afterwards. The next update must see it.
func TestCancelledCommitThatIsAppliedLaterShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := numbers("counters")
		k := kvfault.New(newKV(t))
		l := &late{KV: k, after: 10 * time.Second, done: make(chan error, 1)}
		s, _ := open(t, store.Options{KV: l}, table)
		// A transaction that was made before the heads of a new table were seen would
		// conflict with them.
		synctest.Wait()
		l.next.Store(true)
		// Reads and further writes fail as well, so that it stays unknown.
		mend := k.Inject(kvfault.Fault{Op: kvfault.Txn, Err: errAway})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Update(ctx, increment(table, "n")); !errors.Is(err, store.ErrOutcomeUnknown) {
			t.Errorf("err=%v, want ErrOutcomeUnknown", err)
		}
		time.Sleep(5 * time.Second)
		mend()
		if err := <-l.done; err != nil {
			t.Fatal(err)
		}
		if err := s.Update(t.Context(), increment(table, "n")); err != nil {
			t.Error(err)
		}
		if n := count(table, s.Snapshot(), "n"); n != 2 {
			t.Errorf("n=%d, want 2", n)
		}
	})
}

// TestReaderCatchesUpAfterAnOutage makes the kv unavailable for one store while another
// writes more pages than are read one by one.
func TestReaderCatchesUpAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := store.NewTable("things", text())
		inner := newKV(t)
		k := kvfault.New(inner)
		opt := store.Options{KV: inner, MaxPage: 200}
		writer, _ := open(t, opt, table)
		opt.KV = k
		reader, _ := open(t, opt, table)
		for _, n := range []int{300, 5000} {
			mend := k.Cut()
			var fns []func(*store.Tx) error
			for i := range n {
				fns = append(fns, func(tx *store.Tx) error {
					table.Put(tx, fmt.Sprintf("%d/%d", i%100, i), fmt.Sprint("value ", n, i))
					return nil
				})
			}
			for _, err := range writer.UpdateAll(t.Context(), fns) {
				if err != nil {
					t.Fatal(err)
				}
			}
			mend()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			want, got := contents(table, writer.Snapshot()), contents(table, reader.Snapshot())
			if len(want) != n || len(got) != n {
				t.Fatalf("%d records, read %d, want %d", len(want), len(got), n)
			}
			for key, v := range want {
				if got[key] != v {
					t.Fatalf("%s=%q, want %q", key, got[key], v)
				}
			}
		}
	})
}

// switched is a kv that can be replaced by another one, as a restore does.
type switched struct {
	kv.KV // for Limits and sessions
	inner atomic.Pointer[embedded.KV]
}

func (s *switched) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	return s.inner.Load().Txn(ctx, ops)
}

func (s *switched) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	return s.inner.Load().List(ctx, prefix, opt)
}

// TestRestoreBetweenListsIsNoticed restores the kv while no list waits. The next lists wait
// for an index that the kv reaches much later, so only the probe can notice it.
func TestRestoreBetweenListsIsNoticed(t *testing.T) {
	t.Run("own watches", func(t *testing.T) { restoredBetweenLists(t, numbers("counters"), numbers("others")) })
	t.Run("one watch", func(t *testing.T) {
		restoredBetweenLists(t, numbers("counters").RarelyWritten(), numbers("others").RarelyWritten())
	})
}

func restoredBetweenLists(t *testing.T, table, other *store.Table[int]) {
	synctest.Test(t, func(t *testing.T) {
		old := openEmbedded(t, "")
		k := &switched{KV: old}
		k.inner.Store(old)
		s, _ := open(t, store.Options{KV: k}, table, other)
		bump := func(which *store.Table[int], n int) {
			t.Helper()
			for range n {
				if err := s.Update(t.Context(), increment(which, "n")); err != nil {
					t.Fatal(err)
				}
			}
		}
		bump(table, 3)
		bump(other, 3)
		saved, _, err := old.List(t.Context(), "", kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bump(table, 20)
		bump(other, 20)
		synctest.Wait()
		restored := openEmbedded(t, "")
		for _, p := range saved {
			if _, err := restored.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: p.Key, Value: p.Value}}); err != nil {
				t.Fatal(err)
			}
		}
		// Lists that wait at the old one now are not woken.
		k.inner.Store(restored)
		<-time.After(10 * time.Second)
		for _, which := range []*store.Table[int]{table, other} {
			if n := count(which, s.Snapshot(), "n"); n != 3 {
				t.Errorf("n=%d some seconds after the restore, want 3", n)
			}
			// And it is followed from there.
			changed, stop := open(t, store.Options{KV: restored}, which)
			if err := changed.Update(t.Context(), increment(which, "n")); err != nil {
				t.Fatal(err)
			}
			stop()
			synctest.Wait()
			if n := count(which, s.Snapshot(), "n"); n != 4 {
				t.Errorf("n=%d after a change, want 4", n)
			}
		}
	})
}

// TestReusedSequenceNumbersAreNotConfused restores the kv to an older state under a running
// store. Sequence numbers and indexes are then used again for different content.
func TestReusedSequenceNumbersAreNotConfused(t *testing.T) {
	for _, again := range []int{0, 2, 50} {
		t.Run(fmt.Sprintf("own watches, %d later", again), func(t *testing.T) {
			restoredFromAnOlderState(t, again, numbers("counters"), numbers("others"))
		})
		t.Run(fmt.Sprintf("one watch, %d later", again), func(t *testing.T) {
			restoredFromAnOlderState(t, again, numbers("counters").RarelyWritten(), numbers("others").RarelyWritten())
		})
	}
}

func restoredFromAnOlderState(t *testing.T, again int, table, second *store.Table[int]) {
	synctest.Test(t, func(t *testing.T) {
		old := openEmbedded(t, "")
		k := &switched{KV: old}
		k.inner.Store(old)
		s, _ := open(t, store.Options{KV: k}, table, second)
		for range 3 {
			if err := s.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
		}
		saved, _, err := old.List(t.Context(), "", kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := s.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
		}

		restored := openEmbedded(t, "")
		for _, p := range saved {
			if _, err := restored.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: p.Key, Value: p.Value}}); err != nil {
				t.Fatal(err)
			}
		}
		other, stop := open(t, store.Options{KV: restored}, table)
		for range again {
			if err := other.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		k.inner.Store(restored)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Update(t.Context(), increment(table, "n")); err != nil {
			t.Error(err)
		}
		if n := count(table, s.Snapshot(), "n"); n != 3+again+1 {
			t.Errorf("n=%d, want %d", n, 3+again+1)
		}
	})
}

func openEmbedded(t *testing.T, path string) *embedded.KV {
	t.Helper()
	k, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func TestRestartedStoreHasItsRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "muster.db")
	table := numbers("counters")
	for i := range 3 {
		k := openEmbedded(t, path)
		s, stop := open(t, store.Options{KV: k}, table)
		if n := count(table, s.Snapshot(), "n"); n != i*10 {
			t.Errorf("n=%d at start %d, want %d", n, i, i*10)
		}
		for range 10 {
			if err := s.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
