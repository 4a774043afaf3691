package consul_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/kv/consultest"
	"github.com/musterhq/muster/internal/kv/kvtest"
)

// agent stands before a Consul server, as one of several ways to it.
type agent struct {
	*httptest.Server
	calls atomic.Int64
	// hang, if given, keeps answers back until it is closed.
	hang atomic.Pointer[chan struct{}]
}

func newAgent(t *testing.T, server *consultest.Server) *agent {
	t.Helper()
	a := &agent{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server.Address})
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.calls.Add(1)
		if hang := a.hang.Load(); hang != nil {
			<-*hang
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(a.kill)
	return a
}

// kill takes the agent away, with the connections that are open.
func (a *agent) kill() {
	_ = a.Listener.Close()
	a.CloseClientConnections()
	a.Close()
}

// over returns a client that can go by each of the agents.
func over(t *testing.T, agents ...*agent) *consul.KV {
	t.Helper()
	var addresses []string
	for _, a := range agents {
		addresses = append(addresses, strings.TrimPrefix(a.URL, "http://"))
	}
	return client(t, strings.Join(addresses, ","))
}

func TestConformanceOverSeveralAgents(t *testing.T) {
	server := shared.Start(t)
	gone := newAgent(t, server)
	gone.kill()
	kvtest.Run(t, func(t *testing.T) kv.KV { return over(t, gone, newAgent(t, server)) })
}

// TestAgentDies goes by the next agent when one is gone: what was not sent is
// sent there without the caller's noticing.
func TestAgentDies(t *testing.T) {
	server := shared.Start(t)
	first, second := newAgent(t, server), newAgent(t, server)
	s := over(t, first, second)
	set := func() error {
		_, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "agent/dies", Value: []byte("x")}})
		return err
	}
	if err := set(); err != nil || second.calls.Load() != 0 {
		t.Fatalf("Txn error = %v, with %d calls by the second agent, want none", err, second.calls.Load())
	}
	first.kill()
	failures := 0
	for set() != nil {
		failures++
	}
	// A connection that stood may have taken a request along.
	if failures > 1 {
		t.Errorf("%d calls failed, want one at most", failures)
	}
	if _, err := s.Get(t.Context(), "agent/dies"); err != nil {
		t.Error(err)
	}
	second.kill()
	if err := set(); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("without agents: error = %v, want ErrUnavailable", err)
	}
}

// TestAgentHangs leaves an agent that does not answer, also with lists that may
// wait for minutes.
func TestAgentHangs(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	first, second := newAgent(t, server), newAgent(t, server)
	s := over(t, first, second)
	if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "agent/hangs/x"}}); err != nil {
		t.Fatal(err)
	}
	_, index, err := s.List(t.Context(), "agent/hangs/", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	first.hang.Store(&hang)
	defer close(hang)
	blocked := make(chan error, 1)
	go func() {
		_, _, err := s.List(t.Context(), "agent/hangs/", kv.ListOptions{After: index})
		blocked <- err
	}()
	began := time.Now()
	if _, err := s.Get(t.Context(), "agent/hangs"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Get error = %v, want ErrUnavailable", err)
	}
	if err := <-blocked; !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("List error = %v, want ErrUnavailable", err)
	}
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("Get and List gave up after %v", took)
	}
	if _, err := s.Get(t.Context(), "agent/hangs"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("the next Get: error = %v, want ErrNotFound", err)
	}
}

// TestAgentIsOnlySlow lets an agent that answers otherwise have all the time that
// a list may take.
func TestAgentIsOnlySlow(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	a := newAgent(t, server)
	s := over(t, a)
	if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "agent/slow/x"}}); err != nil {
		t.Fatal(err)
	}
	_, index, err := s.List(t.Context(), "agent/slow/", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := a.calls.Load()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	if _, _, err := s.List(ctx, "agent/slow/", kv.ListOptions{After: index}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("List error = %v, want that of its context", err)
	}
	if asked := a.calls.Load() - before; asked < 2 || asked > 5 {
		t.Errorf("the agent was called %d times, want the list and whether it is there every few seconds", asked)
	}
}

// TestSessionStaysWithItsAgent loses the agent that has the service: the session
// is lost with it, and the next is with another.
func TestSessionStaysWithItsAgent(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	first, second := newAgent(t, server), newAgent(t, server)
	s := over(t, first, second)
	svc, _ := service(t, "stays")
	svc.Silence = time.Second
	x := openSession(t, s, svc)
	before := first.calls.Load()
	<-time.After(2 * svc.Silence)
	if first.calls.Load() == before || second.calls.Load() != 0 {
		t.Errorf("%d calls more by the agent of the session, %d by the other", first.calls.Load()-before, second.calls.Load())
	}
	first.kill()
	expectLost(t, x)
	y := openSession(t, s, svc)
	closeSession(t, y)
	closeSession(t, x)
}
