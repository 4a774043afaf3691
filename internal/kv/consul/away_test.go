package consul_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/consultest"
)

// untilDone repeats a write while Consul is away.
func untilDone(t *testing.T, s *consul.KV, key string) kv.Pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		pairs, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: key, Value: []byte("x")}})
		if err == nil {
			return pairs[0]
		}
		if !errors.Is(err, kv.ErrUnavailable) || ctx.Err() != nil {
			t.Fatalf("Txn error = %v, want ErrUnavailable until it works", err)
		}
	}
}

// TestPaused lets Consul hang: calls end with their contexts, and once it goes
// on, it is as if nothing had been.
func TestPaused(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	s := server.KV(t)
	svc, _ := service(t, "paused")
	// The session outlives the pause also where the machine is busy and it lasts.
	svc.Silence = time.Minute
	x := openSession(t, s, svc)
	first := untilDone(t, s, "a")
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) error{
		"Txn":  func(ctx context.Context) error { _, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: "b"}}); return err },
		"Get":  func(ctx context.Context) error { _, err := s.Get(ctx, "a"); return err },
		"List": func(ctx context.Context) error { _, _, err := s.List(ctx, "a", kv.ListOptions{}); return err },
		"NewSession": func(ctx context.Context) error {
			_, err := s.NewSession(ctx, kv.SessionConfig{})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(200*time.Millisecond, cancel)
		err := call(ctx)
		if !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s of a Consul that hangs: error = %v, want ErrUnavailable and the context's", name, err)
		}
		timer.Stop()
		cancel()
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if again := untilDone(t, s, "c"); again.Index <= first.Index {
		t.Errorf("index %d after the pause, %d before it", again.Index, first.Index)
	}
	select {
	case <-x.Lost():
		t.Error("a pause of a second cost the session")
	default:
	}
	if ok, err := x.Acquire(t.Context(), "lock", nil); !ok || err != nil {
		t.Errorf("Acquire = %v, %v", ok, err)
	}
	closeSession(t, x)
}

// TestKilledAndRestarted lets Consul die: blocked lists end, writes are refused
// until it is back, and what was acknowledged is there.
func TestKilledAndRestarted(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	s := server.KV(t)
	svc, _ := service(t, "restarted")
	x := openSession(t, s, svc)
	if ok, err := x.Acquire(t.Context(), "lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	first := untilDone(t, s, "a")
	_, index, err := s.List(t.Context(), "a", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() {
		for {
			// It may wake without a change; what counts is how it ends.
			if _, _, err := s.List(t.Context(), "a", kv.ListOptions{After: index}); err != nil {
				blocked <- err
				return
			}
		}
	}()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-blocked:
		expectClass(t, "blocked List", err, kv.ErrUnavailable)
	case <-time.After(patience):
		t.Fatal("a blocked List outlived its server")
	}
	_, err = s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "b"}})
	expectClass(t, "Txn", err, kv.ErrUnavailable)

	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	p, err := s.Get(t.Context(), "a")
	if err != nil || p.Index != first.Index {
		t.Errorf("after the restart: %+v, %v, want index %d", p, err, first.Index)
	}
	if again := untilDone(t, s, "b"); again.Index <= first.Index {
		t.Errorf("index %d after the restart, %d before it", again.Index, first.Index)
	}
	// Whether the session outlives its server is Consul's affair; what must be
	// is that the process knows, and that it can work on.
	_, err = x.Acquire(t.Context(), "lock", nil)
	switch {
	case errors.Is(err, kv.ErrSessionLost):
		expectLost(t, x)
		t.Log("the session did not outlive the restart of its server")
		next := openSession(t, s, svc)
		closeSession(t, x)
		x = next
	case err != nil:
		t.Errorf("Acquire after the restart: %v", err)
	default:
		t.Log("the session outlived the restart of its server")
	}
	closeSession(t, x)
}

// TestAwayForLong lets Consul hang for longer than the session's TTL. The process
// must no longer believe in its locks. Consul itself has not seen the time pass, so
// no other process could get them if the session were not ended.
func TestAwayForLong(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	s := server.KV(t)
	svc, _ := service(t, "away-for-long")
	x := openSession(t, s, svc)
	if ok, err := x.Acquire(t.Context(), "lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	expectLost(t, x)
	if _, err := x.Acquire(t.Context(), "lock", nil); !errors.Is(err, kv.ErrSessionLost) {
		t.Errorf("Acquire with a lost session: error = %v, want ErrSessionLost", err)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	untilDone(t, s, "a")
	next := openSession(t, s, svc)
	defer closeSession(t, next)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		ok, err := next.Acquire(ctx, "lock", nil)
		if err != nil {
			t.Fatalf("Acquire with the next session: %v", err)
		}
		if ok {
			break
		}
	}
	closeSession(t, x)
	if p, err := s.Get(ctx, "lock"); err != nil || p.Session != next.ID() {
		t.Errorf("lock = %+v, %v, want it held by %s", p, err, next.ID())
	}
}
