package kvfault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/kv/kvtest"
)

var errBroken = fmt.Errorf("broken by the test: %w", kv.ErrUnavailable)

func open(t *testing.T) *kvfault.KV {
	t.Helper()
	inner, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	return kvfault.New(inner)
}

func TestConformanceWithoutFaults(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.KV { return open(t) })
}

func set(ctx context.Context, k kv.KV, key string) error {
	_, err := k.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: key, Value: []byte("x")}})
	return err
}

// TestFaultBreaksOnlyItsOperation injects a fault for each operation in turn.
func TestFaultBreaksOnlyItsOperation(t *testing.T) {
	ctx := t.Context()
	for _, broken := range []kvfault.Op{kvfault.Txn, kvfault.List, kvfault.Get, kvfault.Session, kvfault.Acquire, kvfault.Release, kvfault.Close} {
		t.Run(string(broken), func(t *testing.T) {
			k := open(t)
			if err := set(ctx, k, "a"); err != nil {
				t.Fatal(err)
			}
			held, err := k.NewSession(ctx, kv.SessionConfig{})
			if err != nil {
				t.Fatal(err)
			}
			other, err := k.NewSession(ctx, kv.SessionConfig{})
			if err != nil {
				t.Fatal(err)
			}
			ops := map[kvfault.Op]func() error{
				kvfault.Txn:     func() error { return set(ctx, k, "a") },
				kvfault.List:    func() error { _, _, err := k.List(ctx, "a", kv.ListOptions{}); return err },
				kvfault.Get:     func() error { _, err := k.Get(ctx, "a"); return err },
				kvfault.Session: func() error { _, err := k.NewSession(ctx, kv.SessionConfig{}); return err },
				kvfault.Acquire: func() error { _, err := held.Acquire(ctx, "lock", nil); return err },
				kvfault.Release: func() error { return held.Release(ctx, "lock") },
				kvfault.Close:   func() error { return other.Close(ctx) },
			}
			remove := k.Inject(kvfault.Fault{Op: broken, Err: errBroken})
			for op, do := range ops {
				err := do()
				if op == broken && !errors.Is(err, errBroken) {
					t.Errorf("%s: error = %v, want the one injected", op, err)
				}
				if op != broken && err != nil {
					t.Errorf("%s: error = %v, want none", op, err)
				}
			}
			remove()
			remove()
			if err := ops[broken](); err != nil {
				t.Errorf("%s after the fault was removed: %v", broken, err)
			}
		})
	}
}

func TestConditions(t *testing.T) {
	tests := map[string]struct {
		fault kvfault.Fault
		want  string // of five writes to a/0 to a/4: x is broken
	}{
		"all":    {kvfault.Fault{}, "xxxxx"},
		"prefix": {kvfault.Fault{Prefix: "a/3"}, "...x."},
		"skip":   {kvfault.Fault{Skip: 2}, "..xxx"},
		"times":  {kvfault.Fault{Skip: 1, Times: 2}, ".xx.."},
		"when":   {kvfault.Fault{When: func(c kvfault.Call) bool { return c.Writes && c.Keys[0] == "a/0" }}, "x...."},
		"reads":  {kvfault.Fault{When: func(c kvfault.Call) bool { return !c.Writes }}, "....."},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k := open(t)
			test.fault.Err = errBroken
			k.Inject(test.fault)
			got := ""
			for i := range 5 {
				if set(t.Context(), k, fmt.Sprintf("a/%d", i)) != nil {
					got += "x"
				} else {
					got += "."
				}
			}
			if got != test.want {
				t.Errorf("broken calls: %s, want %s", got, test.want)
			}
			if n := k.Calls(kvfault.Txn); n != 5 {
				t.Errorf("Calls = %d, want 5", n)
			}
		})
	}
}

// TestOutcomeUnknown compares a failure before the write with one after it.
func TestOutcomeUnknown(t *testing.T) {
	for _, applied := range []bool{false, true} {
		k := open(t)
		remove := k.Inject(kvfault.Fault{Op: kvfault.Txn, Err: errBroken, Applied: applied})
		if err := set(t.Context(), k, "a"); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("Txn error = %v, want ErrUnavailable", err)
		}
		remove()
		if _, err := k.Get(t.Context(), "a"); (err == nil) != applied {
			t.Errorf("applied = %v, and then Get error = %v", applied, err)
		}
	}
}

func TestDelayAndHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t)
		remove := k.Inject(kvfault.Fault{Delay: time.Minute})
		began := time.Now()
		if err := set(t.Context(), k, "a"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("a write delayed by a minute took %v", took)
		}
		remove()

		remove = k.Inject(kvfault.Fault{Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := set(ctx, k, "a"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 61*time.Minute {
			t.Errorf("a write that hangs: error = %v after %v, want the context's after an hour", err, time.Since(began))
		}
		done := make(chan error, 1)
		go func() { done <- set(t.Context(), k, "a") }()
		synctest.Wait()
		remove()
		if err := <-done; err != nil {
			t.Errorf("a write that hung until the fault was removed: %v", err)
		}
	})
}

// TestCutEndsBlockedLists checks that who waits learns that the store went away.
func TestCutEndsBlockedLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t)
		if err := set(t.Context(), k, "a"); err != nil {
			t.Fatal(err)
		}
		_, index, err := k.List(t.Context(), "a", kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, _, err := k.List(t.Context(), "a", kv.ListOptions{After: index})
			ended <- err
		}()
		synctest.Wait()
		mend := k.Cut()
		if err := <-ended; !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("blocked List: error = %v, want ErrUnavailable", err)
		}
		mend()
		if err := set(t.Context(), k, "a"); err != nil {
			t.Errorf("Txn once mended: %v", err)
		}
	})
}

func TestLoseSessions(t *testing.T) {
	k := open(t)
	ctx := t.Context()
	s, err := k.NewSession(ctx, kv.SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := s.Acquire(ctx, "lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	if err := k.LoseSessions(ctx); err != nil {
		t.Fatal(err)
	}
	<-s.Lost()
	if _, err := s.Acquire(ctx, "lock", nil); !errors.Is(err, kv.ErrSessionLost) {
		t.Errorf("Acquire: error = %v, want ErrSessionLost", err)
	}
	if _, err := k.Get(ctx, "lock"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get of its lock: error = %v, want ErrNotFound", err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}
