package store_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// puts returns updates of one record each.
func puts(table *store.Table[string], keys []string, value string) []func(*store.Tx) error {
	fns := make([]func(*store.Tx) error, len(keys))
	for i, key := range keys {
		fns[i] = func(tx *store.Tx) error { table.Put(tx, key, value); return nil }
	}
	return fns
}

func updateAll(t *testing.T, s *store.Store, fns []func(*store.Tx) error) {
	t.Helper()
	for i, err := range s.UpdateAll(t.Context(), fns) {
		if err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
}

// TestBulkWorkWritesEachPageAboutOnce: in any order, 10,000 updates need few more
// transactions than their size requires.
func TestBulkWorkWritesEachPageAboutOnce(t *testing.T) {
	table := store.NewTable("things", text())
	k := kvfault.New(newKV(t))
	s, _ := open(t, store.Options{KV: k}, table)
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = fmt.Sprintf("node%d/%08d", i%500, i)
	}
	for _, value := range []string{"one", "two"} {
		value = strings.Repeat(value, 30)
		rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		before := k.Calls(kvfault.Txn)
		updateAll(t, s, puts(table, keys, value))
		least := len(keys)*len(value)/k.Limits().Bytes + 1
		if n := k.Calls(kvfault.Txn) - before; n > 3*least {
			t.Errorf("%d transactions, although %d could hold all bytes", n, least)
		}
	}
}

// TestSmallUpdateOvertakesBulkWork starts an update while 30,000 are waiting.
func TestSmallUpdateOvertakesBulkWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := store.NewTable("things", text())
		k := kvfault.New(newKV(t))
		// A second each for more than nine transactions.
		k.Inject(kvfault.Fault{Op: kvfault.Txn, Delay: time.Second})
		s, _ := open(t, store.Options{KV: k}, table)
		keys := make([]string, 30_000)
		for i := range keys {
			keys[i] = fmt.Sprintf("node%d/%08d", i%500, i)
		}
		bulk := make(chan []error, 1)
		go func() { bulk <- s.UpdateAll(t.Context(), puts(table, keys, strings.Repeat("x", 100))) }()
		time.Sleep(2500 * time.Millisecond)
		start := time.Now()
		updateAll(t, s, puts(table, []string{"small/1"}, "y"))
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("the small update took %v, want at most the current transaction and its own", d)
		}
		for _, err := range <-bulk {
			if err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < 5*time.Second {
			t.Errorf("bulk work took %v, which is too short for this test", d)
		}
	})
}

// TestTablesShrink removes most of a table's records one by one in random order, and
// counts the remaining pages.
func TestTablesShrink(t *testing.T) {
	table := store.NewTable("things", text())
	k := newKV(t)
	s, _ := open(t, store.Options{KV: k, MaxPage: 1000}, table)
	keys := make([]string, 3000)
	for i := range keys {
		keys[i] = fmt.Sprintf("node/%08d", i)
	}
	updateAll(t, s, puts(table, keys, strings.Repeat("x", 50)))
	pages := func() (n, bytes int) {
		pairs, _, err := k.List(t.Context(), "muster/things/p/", kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pairs {
			if bytes += len(p.Value); len(p.Value) > 1000 {
				t.Errorf("page %s has %d bytes, over the bound of 1000", p.Key, len(p.Value))
			}
		}
		return len(pairs), bytes
	}
	if n, bytes := pages(); n*500 > bytes {
		t.Errorf("%d pages for %d bytes: badly filled", n, bytes)
	}
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for len(keys) > 0 {
		for range 500 {
			key := keys[0]
			keys = keys[1:]
			update(t, s, func(tx *store.Tx) { table.Delete(tx, key) })
		}
		if n, bytes := pages(); n > bytes/200+1 {
			t.Errorf("%d records left: %d pages for %d bytes", len(keys), n, bytes)
		}
	}
	if n, _ := pages(); n != 0 {
		t.Errorf("%d pages of an empty table", n)
	}
}

// TestLargeUpdatesRunOnlyIfTheyFit counts the runs of updates of which only a few fit into
// one transaction. The others must wait without being run, and small updates must still
// overtake them.
func TestLargeUpdatesRunOnlyIfTheyFit(t *testing.T) {
	table := store.NewTable("things", text())
	k := newKV(t)
	s, _ := open(t, store.Options{KV: k}, table)
	const updates, records, size = 40, 500, 300
	perTxn := k.Limits().Bytes / (records * size)
	runs := 0
	fns := make([]func(*store.Tx) error, updates)
	for i := range fns {
		fns[i] = func(tx *store.Tx) error {
			runs++
			for j := range records {
				table.Put(tx, fmt.Sprintf("service/%03d/%03d", i, j), strings.Repeat("x", size))
			}
			return nil
		}
	}
	updateAll(t, s, fns)
	// The first of each transaction is run whatever it may add, and one that was run
	// and had no room is run again.
	if most := updates + updates/perTxn + 1; runs > most {
		t.Errorf("%d runs of %d updates, of which %d fit into a transaction; want at most %d", runs, updates, perTxn, most)
	}
	n := 0
	for range table.Scan(s.Snapshot(), "service/") {
		n++
	}
	if n != updates*records {
		t.Errorf("%d records, want %d", n, updates*records)
	}
}
