package store_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// rare returns tables that share one watch.
func rare(n int) (tables []*store.Table[int], defs []store.TableDef) {
	for i := range n {
		t := numbers(fmt.Sprintf("rare%d", i)).RarelyWritten()
		tables, defs = append(tables, t), append(defs, t)
	}
	return tables, defs
}

// TestRarelyWrittenTablesShareAWatch opens twelve such tables and two others. There must
// be three blocking lists, and a change of another store must show at once.
func TestRarelyWrittenTablesShareAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, defs := rare(12)
		others := []*store.Table[int]{numbers("busy"), numbers("busier")}
		defs = append(defs, others[0], others[1])
		plain := newKV(t)
		k := kvfault.New(plain)
		s, _ := open(t, store.Options{KV: k}, defs...)
		writer, _ := open(t, store.Options{KV: plain}, defs...)
		synctest.Wait()
		for _, table := range append(tables, others...) {
			began, before := time.Now(), s.Snapshot()
			if err := writer.Update(t.Context(), increment(table, "n")); err != nil {
				t.Fatal(err)
			}
			sn, err := s.Wait(t.Context(), before, table)
			if err != nil {
				t.Fatal(err)
			}
			if n := count(table, sn, "n"); n != 1 {
				t.Errorf("table %s: n=%d, want 1", table.Name(), n)
			}
			if d := time.Since(began); d > 0 {
				t.Errorf("table %s: the change showed after %v, want at once", table.Name(), d)
			}
			synctest.Wait()
		}
		if n := k.Waiting(); n != 3 {
			t.Errorf("%d lists wait, want 3", n)
		}
	})
}

// TestCommitWithoutMarkShowsAfterSeconds commits to a rarely written table without
// writing its mark, as former versions do.
func TestCommitWithoutMarkShowsAfterSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, defs := rare(12)
		k := newKV(t)
		s, _ := open(t, store.Options{KV: k}, defs...)
		for i, table := range tables {
			former := numbers(table.Name())
			writer, stop := open(t, store.Options{KV: k}, former)
			began, before := time.Now(), s.Snapshot()
			if err := writer.Update(t.Context(), increment(former, "n")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Wait(t.Context(), before, table); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d > 6*time.Second {
				t.Errorf("table %d: the change showed after %v, want at most 6s", i, d)
			}
			stop()
		}
	})
}

// TestSharedWatchRecovers makes all calls fail for a while. The store must report that it
// is stale, and show the missed changes when the kv is available again.
func TestSharedWatchRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, defs := rare(3)
		plain := newKV(t)
		k := kvfault.New(plain)
		s, _ := open(t, store.Options{KV: k}, defs...)
		writer, _ := open(t, store.Options{KV: plain}, defs...)
		synctest.Wait()
		mend := k.Cut()
		time.Sleep(10 * time.Second)
		if d := s.Staleness(); d < 5*time.Second {
			t.Errorf("staleness = %v after 10 s", d)
		}
		before := s.Snapshot()
		if err := writer.Update(t.Context(), increment(tables[1], "n")); err != nil {
			t.Fatal(err)
		}
		mend()
		sn, err := s.Wait(t.Context(), before, tables[1])
		if err != nil {
			t.Fatal(err)
		}
		if n := count(tables[1], sn, "n"); n != 1 {
			t.Errorf("n=%d, want 1", n)
		}
		time.Sleep(5 * time.Second)
		if d := s.Staleness(); d != 0 {
			t.Errorf("staleness = %v after the kv recovered, want 0", d)
		}
	})
}
