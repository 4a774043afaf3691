package daemon_test

import (
	"context"
	"errors"
	"testing"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

func newStore(t *testing.T) *kvfault.KV {
	t.Helper()
	store, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return kvfault.New(store)
}

func open(t *testing.T, s *daemon.Sessions) kv.Session {
	t.Helper()
	x, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestSessions(t *testing.T) {
	store := newStore(t)
	ctx := t.Context()
	s := daemon.NewSessions(store, kv.SessionConfig{Name: "test"})
	a, b := open(t, s), open(t, s)
	if a.ID() != b.ID() || store.Calls(kvfault.Session) != 1 {
		t.Errorf("two parts have sessions %s and %s, want one", a.ID(), b.ID())
	}
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Acquire(ctx, "lock", nil); !ok || err != nil {
		t.Fatalf("after another's Close: Acquire = %v, %v", ok, err)
	}

	if err := store.LoseSessions(ctx); err != nil {
		t.Fatal(err)
	}
	<-b.Lost()
	remove := store.Inject(kvfault.Fault{Op: kvfault.Session, Err: kv.ErrUnavailable})
	if _, err := s.Open(ctx); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Open error = %v, want the store's", err)
	}
	remove()
	c := open(t, s)
	if c.ID() == b.ID() || open(t, s).ID() != c.ID() {
		t.Errorf("after the loss of %s the sessions are %s and %s, want one new", b.ID(), c.ID(), open(t, s).ID())
	}
	if ok, err := c.Acquire(ctx, "lock", nil); !ok || err != nil {
		t.Fatalf("Acquire with the new session = %v, %v", ok, err)
	}

	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	<-c.Lost()
	if _, err := store.Get(ctx, "lock"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get of the lock: error = %v, want ErrNotFound", err)
	}
	if _, err := s.Open(ctx); err == nil {
		t.Error("Open after Close gave a session")
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// closeCounter counts the sessions that were closed.
type closeCounter struct {
	kv.KV
	closed []string
}

func (c *closeCounter) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	x, err := c.KV.NewSession(ctx, cfg)
	return &countedSession{x, c}, err
}

type countedSession struct {
	kv.Session
	counter *closeCounter
}

func (s *countedSession) Close(ctx context.Context) error {
	s.counter.closed = append(s.counter.closed, s.ID())
	return s.Session.Close(ctx)
}

// TestLostSessionsAreClosed checks that what renews a session ends with it.
func TestLostSessionsAreClosed(t *testing.T) {
	faults := newStore(t)
	store := &closeCounter{KV: faults}
	s := daemon.NewSessions(store, kv.SessionConfig{Name: "test"})
	former := open(t, s)
	if err := faults.LoseSessions(t.Context()); err != nil {
		t.Fatal(err)
	}
	open(t, s)
	if len(store.closed) != 1 || store.closed[0] != former.ID() {
		t.Errorf("closed: %v, want the lost session %s", store.closed, former.ID())
	}
	if err := daemon.NewSessions(store, kv.SessionConfig{}).Close(t.Context()); err != nil {
		t.Errorf("Close without a session: %v", err)
	}
}
