package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// text returns a codec of strings.
func text() store.Codec[string] {
	return store.Codec[string]{
		Encode: func(s string) ([]byte, error) { return []byte(s), nil },
		Decode: func(b []byte) (string, error) { return string(b), nil },
	}
}

func newKV(tb testing.TB) kv.KV {
	tb.Helper()
	k, err := embedded.Open(embedded.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return k
}

// tester has the methods that *testing.T and *rapid.T share.
type tester interface {
	Helper()
	Cleanup(func())
	Errorf(string, ...any)
	Fatal(...any)
}

// open starts a store and waits until it is ready. The store runs until the test ends or
// stop is called.
func open(tb tester, opt store.Options, tables ...store.TableDef) (s *store.Store, stop func()) {
	tb.Helper()
	s, err := store.New(opt, tables...)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("run: %v", err)
		}
	})
	tb.Cleanup(stop)
	if err := s.Ready(ctx); err != nil {
		tb.Fatal(err)
	}
	return s, stop
}

func update(tb testing.TB, s *store.Store, fn func(tx *store.Tx)) {
	tb.Helper()
	if err := s.Update(tb.Context(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		tb.Fatal(err)
	}
}

func contents(t *store.Table[string], r store.Reader) map[string]string {
	m := map[string]string{}
	for e := range t.Scan(r, "") {
		m[e.Key] = e.Value
	}
	return m
}

func TestUpdateShowsInOwnAndOtherSnapshots(t *testing.T) {
	k := newKV(t)
	table := store.NewTable("things", text())
	a, _ := open(t, store.Options{KV: k}, table)
	b, _ := open(t, store.Options{KV: k}, table)

	before := b.Snapshot()
	update(t, a, func(tx *store.Tx) { table.Put(tx, "x/1", "one") })
	if e, ok := table.Get(a.Snapshot(), "x/1"); !ok || e.Value != "one" || e.Version != 1 {
		t.Errorf("own snapshot: %+v, %t, want value one, version 1", e, ok)
	}
	after, err := b.Wait(t.Context(), before, table)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := table.Get(after, "x/1"); !ok || e.Value != "one" || e.Version != 1 {
		t.Errorf("snapshot of the other store: %+v, %t, want value one, version 1", e, ok)
	}
	if _, ok := table.Get(before, "x/1"); ok {
		t.Error("a snapshot from before the update shows the update")
	}
}

func TestUpdateWithErrorWritesNothing(t *testing.T) {
	table := store.NewTable("things", text())
	s, _ := open(t, store.Options{KV: newKV(t)}, table)
	update(t, s, func(tx *store.Tx) { table.Put(tx, "x/1", "one") })

	refusal := errors.New("refused")
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		table.Put(tx, "x/1", "two")
		table.Put(tx, "y/1", "two")
		table.Delete(tx, "x/1")
		return refusal
	})
	if !errors.Is(err, refusal) {
		t.Errorf("err=%v, want the function's own", err)
	}
	if got := contents(table, s.Snapshot()); len(got) != 1 || got["x/1"] != "one" {
		t.Errorf("contents=%v, want x/1=one", got)
	}
}

func TestPutOfEqualValueChangesNothing(t *testing.T) {
	table := store.NewTable("things", text())
	s, _ := open(t, store.Options{KV: newKV(t)}, table)
	update(t, s, func(tx *store.Tx) { table.Put(tx, "x/1", "one") })
	before := s.Snapshot()
	update(t, s, func(tx *store.Tx) { table.Put(tx, "x/1", "one") })
	if s.Snapshot() != before {
		t.Error("putting an equal value made a new snapshot")
	}
}

func TestUpdateAllOfManyRecordsTakesManyTransactions(t *testing.T) {
	table := store.NewTable("things", text())
	k := newKV(t)
	s, _ := open(t, store.Options{KV: k}, table)
	var fns []func(*store.Tx) error
	for i := range 10_000 {
		fns = append(fns, func(tx *store.Tx) error {
			table.Put(tx, fmt.Sprintf("service%d/%08d/task", i%7, i), fmt.Sprintf("%0100d", i))
			return nil
		})
	}
	for i, err := range s.UpdateAll(t.Context(), fns) {
		if err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
	check := func(s *store.Store) {
		t.Helper()
		n := 0
		for e := range table.Scan(s.Snapshot(), "") {
			if e.Value != fmt.Sprintf("%0100s", e.Value[len(e.Value)-5:]) {
				t.Fatalf("%s=%q", e.Key, e.Value)
			}
			n++
		}
		if n != 10_000 {
			t.Errorf("%d records, want 10000", n)
		}
	}
	check(s)
	other, _ := open(t, store.Options{KV: k}, table)
	check(other)
}

func TestTooLargeUpdateWritesNothing(t *testing.T) {
	table := store.NewTable("things", text())
	k := newKV(t)
	s, _ := open(t, store.Options{KV: k}, table)
	big := string(make([]byte, 100<<10))
	for name, fn := range map[string]func(tx *store.Tx) error{
		"bytes": func(tx *store.Tx) error {
			for i := range 10 {
				table.Put(tx, fmt.Sprintf("%d/x", i), big)
			}
			return nil
		},
		"one record": func(tx *store.Tx) error {
			table.Put(tx, "x", big+big+big+big+big+big+big+big+big+big)
			return nil
		},
		"operations": func(tx *store.Tx) error {
			for i := range 200 {
				table.Put(tx, fmt.Sprintf("%d/x", i), big[:3000])
			}
			return nil
		},
	} {
		if err := s.Update(t.Context(), fn); !errors.Is(err, kv.ErrTooLarge) {
			t.Errorf("%s: err=%v, want ErrTooLarge", name, err)
		}
	}
	// Only the heads of the empty table may exist.
	pairs, _, err := k.List(t.Context(), "muster/", kv.ListOptions{})
	if err != nil || len(pairs) > store.Shards {
		t.Errorf("%d keys, err=%v, want at most one head per shard", len(pairs), err)
	}
	for e := range table.Scan(s.Snapshot(), "") {
		t.Errorf("record %q exists, want none", e.Key)
	}
}

// TestSyncShowsEarlierUpdatesAndSharesReads runs 50 calls of Sync at once on a store whose
// watch shows nothing.
func TestSyncShowsEarlierUpdatesAndSharesReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := store.NewTable("things", text())
		k := newKV(t)
		slow := kvfault.New(k)
		defer slow.Inject(kvfault.Fault{Op: kvfault.List, Prefix: "muster/things/h/", Hang: true})()
		writer, stop := open(t, store.Options{KV: k}, table)
		defer stop()
		reader, stop := open(t, store.Options{KV: slow}, table)
		defer stop()
		for n := range 3 {
			updateAll(t, writer, puts(table, []string{"a"}, fmt.Sprint(n)))
			if e, _ := table.Get(reader.Snapshot(), "a"); e.Value == fmt.Sprint(n) {
				t.Fatal("the watch shows the update")
			}
			before := slow.Calls(kvfault.Txn)
			late := slow.Inject(kvfault.Fault{Op: kvfault.Txn, Delay: time.Second})
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if err := reader.Sync(t.Context(), table); err != nil {
						t.Error(err)
					}
					if e, _ := table.Get(reader.Snapshot(), "a"); e.Value != fmt.Sprint(n) {
						t.Errorf("value after Sync = %q, want %d", e.Value, n)
					}
				})
			}
			wg.Wait()
			late()
			if n := slow.Calls(kvfault.Txn) - before; n > 6 {
				t.Errorf("%d transactions for 50 calls of Sync, want at most 6", n)
			}
		}
	})
}

func TestSyncFailsWhileKVIsUnavailable(t *testing.T) {
	bubble(t, func(t *testing.T, k *kvfault.KV) {
		table := store.NewTable("things", text())
		s, stop := open(t, store.Options{KV: k}, table)
		defer stop()
		defer k.Cut()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Sync(ctx, table); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("Sync error = %v, want ErrUnavailable", err)
		}
	})
}

func TestSyncWaitsForRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, table := newKV(t), store.NewTable("t", text())
		s, err := store.New(store.Options{KV: k, Prefix: "muster"}, table)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Sync(ctx, table); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Sync error = %v of a store that does not run, want the context's", err)
		}
	})
}
