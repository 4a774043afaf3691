package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// testContexts ends the context before each kind of call, and during a list
// that is blocked.
func testContexts(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "a", "1", 0))
	_, index := f.list(t)
	s := f.session(t)
	calls := map[string]func(context.Context) error{
		"Get":  func(ctx context.Context) error { _, err := f.Get(ctx, f.key("a")); return err },
		"List": func(ctx context.Context) error { _, _, err := f.List(ctx, f.prefix, kv.ListOptions{}); return err },
		"List, blocked": func(ctx context.Context) error {
			_, _, err := f.List(ctx, f.prefix, kv.ListOptions{After: index})
			return err
		},
		"Txn": func(ctx context.Context) error {
			_, err := f.Txn(ctx, []kv.Op{f.op(kv.Set, "a", "2", 0)})
			return err
		},
		"Txn, reading": func(ctx context.Context) error {
			_, err := f.Txn(ctx, []kv.Op{f.op(kv.Get, "a", "", 0)})
			return err
		},
		"NewSession": func(ctx context.Context) error { _, err := f.NewSession(ctx, kv.SessionConfig{}); return err },
		"Acquire":    func(ctx context.Context) error { _, err := s.Acquire(ctx, f.key("lock"), nil); return err },
		"Release":    func(ctx context.Context) error { return s.Release(ctx, f.key("lock")) },
	}
	cause := errors.New("the reason why")
	cancelled, cancel := context.WithCancelCause(f.ctx)
	cancel(cause)
	for name, call := range calls {
		if err := call(cancelled); !errors.Is(err, cause) {
			t.Errorf("%s with a cancelled context: error = %v, want the cause in it", name, err)
		}
	}
	if p := f.get(t, "a"); string(p.Value) != "1" {
		t.Errorf("value = %q: a call was made with a context that had ended", p.Value)
	}

	late, stop := context.WithTimeoutCause(f.ctx, 50*time.Millisecond, cause)
	defer stop()
	if err := calls["List, blocked"](late); !errors.Is(err, cause) {
		t.Errorf("a blocked List whose time is up: error = %v, want the cause in it", err)
	}
}

func testValues(t *testing.T, f *fixture) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	values := [][]byte{nil, {}, {0}, all, []byte(`"<&>\u0000`), bytes.Repeat([]byte{0xff}, 100_000)}
	for i, value := range values {
		key := f.key(fmt.Sprint(i))
		f.txn(t, kv.Op{Verb: kv.Set, Key: key, Value: value})
		if p := f.get(t, fmt.Sprint(i)); !bytes.Equal(p.Value, value) {
			t.Errorf("value %d came back as %d bytes, want the %d that were written", i, len(p.Value), len(value))
		}
	}
	if pairs, _ := f.list(t); len(pairs) != len(values) {
		t.Errorf("List has %d pairs, want %d", len(pairs), len(values))
	}
}

func testValuesAreNotShared(t *testing.T, f *fixture) {
	value := []byte("value")
	f.txn(t, kv.Op{Verb: kv.Set, Key: f.key("a"), Value: value})
	clobber := func(b []byte) {
		for i := range b {
			b[i] = 'x'
		}
	}
	clobber(value)
	clobber(f.get(t, "a").Value)
	pairs, _ := f.list(t)
	clobber(pairs[0].Value)
	clobber(f.txn(t, f.op(kv.Get, "a", "", 0))[0].Value)
	if got := f.get(t, "a"); string(got.Value) != "value" {
		t.Errorf("value = %q after its copies were overwritten, want %q", got.Value, "value")
	}
	lock := []byte("value")
	s := f.session(t)
	if ok, err := s.Acquire(f.ctx, f.key("lock"), lock); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	clobber(lock)
	if got := f.get(t, "lock"); string(got.Value) != "value" {
		t.Errorf("lock's value = %q after its copy was overwritten, want %q", got.Value, "value")
	}
}

// longKey is a key of the greatest length.
func (f *fixture) longKey(i int) string {
	name := f.key(fmt.Sprintf("%d-", i))
	return name + strings.Repeat("k", kv.MaxKey-len(name))
}

// testLimits goes to the limits, which must be kept with the longest of keys
// and the greatest of indexes, and over each of them.
func testLimits(t *testing.T, f *fixture) {
	limits := f.Limits()
	ops := make([]kv.Op, limits.Ops)
	for i := range ops {
		ops[i] = kv.Op{Verb: kv.Set, Key: f.longKey(i), Value: bytes.Repeat([]byte{0xff}, limits.Bytes/limits.Ops)}
	}
	f.txn(t, ops...)
	for i, p := range f.txn(t, ops...) {
		ops[i].Verb, ops[i].Index = kv.CAS, p.Index
		ops[i].Value = bytes.Repeat([]byte{0xfe}, len(ops[i].Value))
	}
	f.txn(t, ops...)

	tooLarge := func(what string, ops ...kv.Op) {
		t.Helper()
		if _, err := f.Txn(f.ctx, ops); !errors.Is(err, kv.ErrTooLarge) {
			t.Errorf("Txn with %s: error = %v, want ErrTooLarge", what, err)
		}
	}
	tooLarge("one operation more", append(ops, f.op(kv.Set, "more", "x", 0))...)
	big := kv.Op{Verb: kv.Set, Key: f.key("big"), Value: bytes.Repeat([]byte{0xff}, limits.Bytes)}
	f.txn(t, big)
	big.Value = append(big.Value, 0)
	tooLarge("one byte more", f.op(kv.Set, "with-big", "x", 0), big)
	tooLarge("a key of one byte more", f.op(kv.Set, "with-long", "x", 0), kv.Op{Verb: kv.Set, Key: f.longKey(0) + "k"})
	for _, name := range []string{"more", "with-big", "with-long"} {
		if _, err := f.Get(f.ctx, f.key(name)); !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("Get(%q) error = %v: a transaction that was too large was applied in part", name, err)
		}
	}
	if pairs, err := f.Txn(f.ctx, nil); len(pairs) != 0 || err != nil {
		t.Errorf("Txn of nothing = %v, %v, want nothing", pairs, err)
	}
}

// testMalformed hands in what no caller should. It is refused in no class,
// for it would not help to try again.
func testMalformed(t *testing.T, f *fixture) {
	bad := map[string]kv.Op{
		"no verb":      {Key: f.key("a")},
		"unknown verb": {Verb: 99, Key: f.key("a")},
		"no key":       {Verb: kv.Set},
		"slash first":  {Verb: kv.Set, Key: "/" + f.key("a")},
	}
	for name, op := range bad {
		_, err := f.Txn(f.ctx, []kv.Op{f.op(kv.Set, "before", "x", 0), op})
		if err == nil {
			t.Errorf("%s: the transaction was accepted", name)
		}
		for _, class := range []error{kv.ErrConflict, kv.ErrUnavailable, kv.ErrTooLarge, kv.ErrNotFound} {
			if errors.Is(err, class) {
				t.Errorf("%s: error = %v, want none of class %q", name, err, class)
			}
		}
	}
	if got := f.contents(t); len(got) != 0 {
		t.Errorf("contents = %v: a malformed transaction was applied in part", got)
	}
}
