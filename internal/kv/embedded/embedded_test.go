package embedded_test

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvtest"
)

func open(t testing.TB, path string) *embedded.KV {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformanceInMemory(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.KV { return open(t, "") })
}

func TestConformanceOnDisk(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.KV { return open(t, filepath.Join(t.TempDir(), "store.db")) })
}

func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	first := open(t, path)
	pairs, err := first.Txn(t.Context(), []kv.Op{
		{Verb: kv.Set, Key: "a", Value: []byte("1")}, {Verb: kv.Set, Key: "gone", Value: []byte("1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Txn(t.Context(), []kv.Op{{Verb: kv.Delete, Key: "gone"}}); err != nil {
		t.Fatal(err)
	}
	session, err := first.NewSession(t.Context(), kv.SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := session.Acquire(t.Context(), "lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Get(t.Context(), "a"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Get after Close: error = %v, want ErrUnavailable", err)
	}

	second := open(t, path)
	all, _, err := second.List(t.Context(), "", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Key != "a" || string(all[0].Value) != "1" || all[0].Index != pairs[0].Index {
		t.Errorf("after the restart: %+v, want key a at index %d alone: locks end with the process", all, pairs[0].Index)
	}
	again, err := second.Txn(t.Context(), []kv.Op{{Verb: kv.CAS, Key: "a", Value: []byte("2"), Index: pairs[0].Index}})
	if err != nil {
		t.Fatal(err)
	}
	if again[0].Index <= pairs[0].Index {
		t.Errorf("index %d after the restart, %d before it: it must grow", again[0].Index, pairs[0].Index)
	}
}

func TestSecondProcessIsToldWhy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open(t, path)
	if s, err := embedded.Open(embedded.Config{Path: path}); err == nil {
		_ = s.Close()
		t.Fatal("one file was opened twice")
	}
}

func BenchmarkTxnOnDisk(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "store.db"))
	value := make([]byte, 8<<10)
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range 8 {
		wg.Go(func() {
			for range b.N / 8 {
				if _, err := s.Txn(b.Context(), []kv.Op{{Verb: kv.Set, Key: string(rune('a' + c)), Value: value}}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
