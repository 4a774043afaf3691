package kvtest

import (
	"errors"
	"sync"
	"sync/atomic"
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
		t.Error("lock was released by a replica that did not hold it")
	}
	if err := a.Release(f.ctx, f.key("lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(f.ctx, f.key("lock")); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("after Release: Get error = %v, want ErrNotFound", err)
	}
	f.acquireSoon(t, b, "lock", "b")
}

// testLocksExclude lets many compete for one lock, and counts who thinks that it
// is theirs.
func testLocksExclude(t *testing.T, f *fixture) {
	const contenders, rounds = 4, 3
	var (
		wg      sync.WaitGroup
		holders atomic.Int32
	)
	for range contenders {
		s := f.session(t)
		wg.Go(func() {
			for won := 0; won < rounds; {
				ok, err := s.Acquire(f.ctx, f.key("lock"), []byte(s.ID()))
				if err != nil {
					t.Errorf("Acquire: %v", err)
					return
				}
				if !ok {
					continue
				}
				won++
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d sessions hold one lock", n)
				}
				if p, err := f.Get(f.ctx, f.key("lock")); err != nil || p.Session != s.ID() {
					t.Errorf("the lock of %s is %+v, %v", s.ID(), p, err)
				}
				holders.Add(-1)
				if err := s.Release(f.ctx, f.key("lock")); err != nil {
					t.Errorf("Release: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// testLocksAndWrites writes to keys that are held, and locks keys that were
// written.
func testLocksAndWrites(t *testing.T, f *fixture) {
	a := f.session(t)
	f.acquire(t, a, "lock", "a")
	f.txn(t, f.op(kv.Set, "lock", "written", 0), f.op(kv.Set, "plain", "1", 0))
	if p := f.get(t, "lock"); p.Session != a.ID() || string(p.Value) != "written" {
		t.Errorf("a lock that was written to: %q held by %q, want it still held by %q", p.Value, p.Session, a.ID())
	}
	before := f.get(t, "plain")
	if !f.acquire(t, a, "plain", "2") {
		t.Fatal("the lock at a key that was there already was refused")
	}
	if p := f.get(t, "plain"); p.Session != a.ID() || string(p.Value) != "2" || p.Index <= before.Index {
		t.Errorf("locked key = %+v, want it held by %q and written again", p, a.ID())
	}
	f.txn(t, f.op(kv.Delete, "lock", "", 0))
	b := f.session(t)
	f.acquireSoon(t, b, "lock", "b")
	if err := a.Close(f.ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.await(f.key("plain"), 0, func(pairs []kv.Pair) bool { return len(pairs) == 0 }); err != nil {
		t.Errorf("waiting for the locked key to go with its session: %v", err)
	}
	if p := f.get(t, "lock"); p.Session != b.ID() {
		t.Errorf("the end of one session took the lock of another: %+v", p)
	}
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
