package kvtest

import (
	"errors"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

func (f *fixture) session(t testing.TB) kv.Session {
	t.Helper()
	s, err := f.NewSession(f.ctx, kv.SessionConfig{Name: t.Name()})
	if err != nil {
		t.Fatalf("NewSession: %v", err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	return s
}

func (f *fixture) acquire(t testing.TB, s kv.Session, name, value string) bool {
	t.Helper()
	ok, err := s.Acquire(f.ctx, f.key(name), []byte(value))
	if err != nil {
		t.Fatalf("Acquire(%q): %v", name, err)
	}
	return ok
}

// acquireSoon tries until the lock delay is over.
func (f *fixture) acquireSoon(t testing.TB, s kv.Session, name, value string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f.acquire(t, s, name, value) {
		if time.Now().After(deadline) {
			t.Fatalf("lock %q is still refused after %v", name, patience)
		}
	}
}

func testLocks(t *testing.T, f *fixture) {
	a, b := f.session(t), f.session(t)
	if a.ID() == b.ID() {
		t.Fatalf("two sessions have one id, %q", a.ID())
	}
	if !f.acquire(t, a, "lock", "a") {
		t.Fatal("a free lock was refused")
	}
	if f.acquire(t, b, "lock", "b") {
		t.Fatal("a held lock was given away")
	}
	if !f.acquire(t, a, "lock", "again") {
		t.Error("the holder was refused its own lock")
	}
	if p := f.get(t, "lock"); p.Session != a.ID() || string(p.Value) != "again" {
		t.Errorf("lock = %q held by %q, want %q held by %q", p.Value, p.Session, "again", a.ID())
	}
	if err := b.Release(f.ctx, f.key("lock")); err != nil {
		t.Errorf("Release of what is not held: %v", err)
	}
	if p := f.get(t, "lock"); p.Session != a.ID() {
		t.Error("a lock was released by who did not hold it")
	}
	if err := a.Release(f.ctx, f.key("lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(f.ctx, f.key("lock")); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("after Release: Get error = %v, want ErrNotFound", err)
	}
	f.acquireSoon(t, b, "lock", "b")
}

func testLocksAndLists(t *testing.T, f *fixture) {
	a := f.session(t)
	_, index := f.list(t)
	woken := make(chan error, 1)
	go func() {
		woken <- f.await(f.prefix, index, func(pairs []kv.Pair) bool {
			return len(pairs) == 1 && pairs[0].Session == a.ID()
		})
	}()
	f.acquire(t, a, "lock", "a")
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
}

func testSessionEnd(t *testing.T, f *fixture) {
	a, b := f.session(t), f.session(t)
	f.acquire(t, a, "lock", "a")
	_, index := f.list(t)
	freed := make(chan error, 1)
	go func() {
		freed <- f.await(f.prefix, index, func(pairs []kv.Pair) bool { return len(pairs) == 0 })
	}()
	select {
	case <-a.Lost():
		t.Fatal("a live session says that it is lost")
	default:
	}
	if err := a.Close(f.ctx); err != nil {
		t.Fatalf("Close: %v", err)
	}
	select {
	case <-a.Lost():
	case <-time.After(patience):
		t.Fatal("a closed session does not say that it is lost")
	}
	if err := <-freed; err != nil {
		t.Fatalf("waiting for the lock to go: %v", err)
	}
	if _, err := a.Acquire(f.ctx, f.key("other"), nil); !errors.Is(err, kv.ErrSessionLost) {
		t.Errorf("Acquire after Close: error = %v, want ErrSessionLost", err)
	}
	f.acquireSoon(t, b, "lock", "b")
}
