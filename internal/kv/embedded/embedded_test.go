package embedded_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

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

func storeFile(t testing.TB) string { return filepath.Join(t.TempDir(), "store.db") }

func TestConformanceInMemory(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.KV { return open(t, "") })
}

func TestConformanceOnDisk(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.KV { return open(t, storeFile(t)) })
}

// TestInBubble checks that a blocked list and a session rest on nothing but
// time and channels, so that they work where synctest makes the time.
func TestInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		ctx, cancel := context.WithTimeout(t.Context(), 48*time.Hour)
		defer cancel()
		holder, err := s.NewSession(ctx, kv.SessionConfig{TTL: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := holder.Acquire(ctx, "lock", nil); !ok || err != nil {
			t.Fatalf("Acquire = %v, %v", ok, err)
		}
		_, index, err := s.List(ctx, "lock", kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(24*time.Hour, func() { _ = holder.Close(ctx) })
		began := time.Now()
		pairs, _, err := s.List(ctx, "lock", kv.ListOptions{After: index})
		if err != nil || len(pairs) != 0 {
			t.Fatalf("List = %v, %v, want the lock gone", pairs, err)
		}
		if took := time.Since(began); took != 24*time.Hour {
			t.Errorf("the lock was held for %v, want a day: a session that lives does not time out", took)
		}
	})
}

func TestCloseEndsWhatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		session, err := s.NewSession(t.Context(), kv.SessionConfig{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, _, err := s.List(t.Context(), "a", kv.ListOptions{After: 1})
			ended <- err
		}()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("blocked List: error = %v, want ErrUnavailable", err)
		}
		<-session.Lost()
		if err := session.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkInMemory(b *testing.B) {
	kvtest.Bench(b, func(b *testing.B) kv.KV { return open(b, "") })
}

func BenchmarkOnDisk(b *testing.B) {
	kvtest.Bench(b, func(b *testing.B) kv.KV { return open(b, storeFile(b)) })
}
