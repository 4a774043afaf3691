package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/consultest"
)

// TestCallsShareFewConnections makes many calls at once while lists wait, and counts
// the connections that Consul sees: one per waiting list, and four for all else.
func TestCallsShareFewConnections(t *testing.T) {
	t.Parallel()
	var open, most atomic.Int64
	a := newAgent(t, consultest.Start(t), func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			for now := open.Add(1); ; {
				if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
					return
				}
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	})
	s := over(t, a)
	svc, _ := service(t, "few-connections")
	x := openSession(t, s, svc)
	ctx, cancel := context.WithCancel(t.Context())
	const lists = 3
	var waiting sync.WaitGroup
	for i := range lists {
		prefix := fmt.Sprintf("few/%d/", i)
		untilDone(t, s, prefix+"a")
		_, index, err := s.List(ctx, prefix, kv.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() {
			for ctx.Err() == nil {
				_, _, _ = s.List(ctx, prefix, kv.ListOptions{After: index})
			}
		})
	}
	var calls sync.WaitGroup
	for i := range 200 {
		calls.Go(func() {
			if _, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: fmt.Sprintf("few/calls/%d", i), Value: []byte("x")}}); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	// One more is the session's watch.
	if n := most.Load(); n > lists+1+4 {
		t.Errorf("%d connections were open at once; want at most %d", n, lists+1+4)
	}
	cancel()
	waiting.Wait()
	closeSession(t, x)
}

// TestConnectionLimit fills an agent with connections up to its limit, as other
// clients at the same address do. Calls wait, the log names the limit, the session
// lives, and everything continues when there is room again.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	const limit = 20
	server := consultest.Start(t, fmt.Sprintf("limits { http_max_conns_per_client = %d }", limit))
	core, logs := observer.New(zap.WarnLevel)
	logged := make(chan struct{})
	log := zap.New(core, zap.Hooks(func(e zapcore.Entry) error {
		close(logged)
		return nil
	}))
	s, err := consul.New(consul.Config{Address: server.Address, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	svc, _ := service(t, "limited")
	x := openSession(t, s, svc)
	untilDone(t, s, "limited/a")
	_, index, err := s.List(t.Context(), "limited/", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, server.Address, limit, func() {
		// Another waiting list takes one more connection.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := s.List(ctx, "limited/", kv.ListOptions{After: index})
		var reached *consul.LimitError
		if !errors.As(err, &reached) || !errors.Is(err, kv.ErrLimited) || !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("List error = %v, want ErrLimited", err)
		} else if reached.Limit != "limits.http_max_conns_per_client" || reached.Connections < 1 {
			t.Errorf("limit error = %+v", reached)
		}
		<-logged
		e := logs.All()[0]
		if e.ContextMap()["limit"] != "limits.http_max_conns_per_client" || e.ContextMap()["default"] != int64(200) {
			t.Errorf("log = %q %v", e.Message, e.ContextMap())
		}
		// The pool has a connection, and so does the session.
		if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "limited/b"}}); err != nil {
			t.Errorf("a call over a connection that is open: %v", err)
		}
		if ok, err := x.Acquire(t.Context(), "limited/lock", nil); !ok || err != nil {
			t.Errorf("Acquire = %v, %v", ok, err)
		}
	})
	if _, _, err := s.List(t.Context(), "limited/", kv.ListOptions{After: index}); err != nil {
		t.Errorf("List when there is room again: %v", err)
	}
	select {
	case <-x.Lost():
		t.Error("the session was lost")
	default:
	}
	closeSession(t, x)
}

// fill opens connections up to the limit, calls fn, and closes them.
func fill(t *testing.T, address string, limit int, fn func()) {
	t.Helper()
	var conns []net.Conn
	for range limit {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	fn()
	for _, c := range conns {
		_ = c.Close()
	}
}

// TestRateLimitIsNamed meets a server whose rate limit is reached for a while.
func TestRateLimitIsNamed(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	a := newAgent(t, server)
	refuse := func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "rate limit", http.StatusTooManyRequests)
		return true
	}
	a.hinder.Store(&refuse)
	s := over(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: "rate"}})
	if !errors.Is(err, kv.ErrLimited) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "limits.request_limits") {
		t.Errorf("Txn error = %v, want ErrLimited with the limit's name", err)
	}
	// The second refusal ends the limit: the write that was refused is sent again.
	var refusals atomic.Int64
	twice := func(w http.ResponseWriter, r *http.Request) bool {
		return refusals.Add(1) <= 2 && refuse(w, r)
	}
	a.hinder.Store(&twice)
	if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "rate", Value: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Get(t.Context(), "rate"); err != nil || string(p.Value) != "x" {
		t.Errorf("Get = %+v, %v", p, err)
	}
}
