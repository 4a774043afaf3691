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

// TestRarelyWrittenTablesShareAWatch opens twelve such tables and two others. Three
// lists wait, and a change of each table by another process shows at once.
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
				t.Errorf("table %s: the change showed after %v", table.Name(), d)
			}
			synctest.Wait()
		}
		if n := k.Waiting(); n != 3 {
			t.Errorf("%d lists wait, want 3", n)
		}
	})
}

// TestTableWithoutMarkShows has a process write a rarely written table that does not
// write marks, as former versions do not: the change shows some seconds later.
func TestTableWithoutMarkShows(t *testing.T) {
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
				t.Errorf("table %d: the change showed after %v", i, d)
			}
			stop()
		}
	})
}

// TestSharedWatchFails lets all calls fail for a while: the store says that it is
// stale, and shows what was written meanwhile as soon as the kv is back.
func TestSharedWatchFails(t *testing.T) {
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
			t.Errorf("staleness = %v with contact", d)
		}
	})
}
