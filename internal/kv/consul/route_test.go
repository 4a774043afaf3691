package consul_test

import (
	"context"
	"errors"
	"net"
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
	"github.com/musterhq/muster/internal/kv/kvtest"
	"github.com/musterhq/muster/test/kit/consultest"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// agent stands before a Consul server, as one of several ways to it.
type agent struct {
	*httptest.Server
	calls atomic.Int64
	// hang, if given, keeps answers back until it is closed.
	hang atomic.Pointer[chan struct{}]
	// hinder, if given, may answer a request in the server's place, which it says.
	hinder atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

// newAgent starts an agent. It tells observers of its connections.
func newAgent(t *testing.T, server *consultest.Server, observers ...func(net.Conn, http.ConnState)) *agent {
	t.Helper()
	a := &agent{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server.Address})
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.calls.Add(1)
		if hang := a.hang.Load(); hang != nil {
			<-*hang
		}
		if hinder := a.hinder.Load(); hinder != nil && (*hinder)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	// httptest has a hook of its own, which it calls after this one.
	a.Config.ConnState = func(c net.Conn, state http.ConnState) {
		for _, observe := range observers {
			observe(c, state)
		}
	}
	a.Start()
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
	if took := time.Since(began); took > time.Minute {
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
	// Where the machine hangs for seconds, so do all agents; but not each time.
	for try := 1; ; try++ {
		before := a.calls.Load()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		_, _, err := s.List(ctx, "agent/slow/", kv.ListOptions{After: index})
		ended := ctx.Err()
		cancel()
		asked := a.calls.Load() - before
		if errors.Is(err, context.DeadlineExceeded) && ended != nil && asked >= 2 && asked <= 5 {
			break
		}
		if try == 5 {
			t.Fatalf("List error = %v, want that of its context; the agent was called %d times, want the list and whether it is there every few seconds", err, asked)
		}
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
	x := openSession(t, s, svc)
	before := first.calls.Load()
	testwait.True(t, "the session is kept by its agent", func() bool { return first.calls.Load() > before+3 })
	if n := second.calls.Load(); n != 0 {
		t.Errorf("%d calls by the other agent", n)
	}
	first.kill()
	expectLost(t, x)
	y := openSession(t, s, svc)
	closeSession(t, y)
	closeSession(t, x)
}

// TestHangingAgentComesLast goes by agents that answer, however badly, before it
// tries one again that hung.
func TestHangingAgentComesLast(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	hangs, second, third := newAgent(t, server), newAgent(t, server), newAgent(t, server)
	s := over(t, hangs, second, third)
	hang := make(chan struct{})
	hangs.hang.Store(&hang)
	defer close(hang)
	if _, err := s.Get(t.Context(), "agent/last"); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("Get by an agent that hangs: error = %v, want ErrUnavailable", err)
	}
	tried := hangs.calls.Load()
	leaderless := func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "No cluster leader", http.StatusInternalServerError)
		return true
	}
	for _, a := range []*agent{second, third} {
		a.hinder.Store(&leaderless)
	}
	for range 10 {
		if _, err := s.Get(t.Context(), "agent/last"); !errors.Is(err, kv.ErrUnavailable) {
			t.Fatalf("Get without a leader: error = %v, want ErrUnavailable", err)
		}
	}
	if again := hangs.calls.Load() - tried; again != 0 {
		t.Errorf("the agent that hangs was tried %d times more", again)
	}
	if second.calls.Load() < 3 || third.calls.Load() < 3 {
		t.Errorf("the others were tried %d and %d times of 10, want turns", second.calls.Load(), third.calls.Load())
	}
}

// TestRefusedSessionStays takes no offence at answers that are about the request:
// Consul refuses a session whose checks it does not know yet, and a lock for a
// session that has ended, as it tells of a fault of its own.
func TestRefusedSessionStays(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	first, second := newAgent(t, server), newAgent(t, server)
	s := over(t, first, second)
	var refusals atomic.Int64
	refuse := func(w http.ResponseWriter, r *http.Request) bool {
		acquires := r.URL.Query().Has("acquire")
		if !acquires && (r.URL.Path != "/v1/session/create" || refusals.Add(1) > 3) {
			return false
		}
		http.Error(w, "the request is to blame", http.StatusInternalServerError)
		return true
	}
	first.hinder.Store(&refuse)
	svc, _ := service(t, "refused")
	x := openSession(t, s, svc)
	if refusals.Load() < 4 {
		t.Errorf("the session was asked for %d times, want more than the refusals", refusals.Load())
	}
	if _, err := x.Acquire(t.Context(), "agent/refused", nil); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Acquire error = %v, want ErrUnavailable", err)
	}
	closeSession(t, x)
	if n := second.calls.Load(); n != 0 {
		t.Errorf("the second agent was called %d times", n)
	}
}

// TestAgentTakesNoServices opens a session at another agent when the first answers
// all but what it would have to keep itself: so does one that waits for a leader
// that hangs, and tells it of a service.
func TestAgentTakesNoServices(t *testing.T) {
	t.Parallel()
	server := shared.Start(t)
	first, second := newAgent(t, server), newAgent(t, server)
	s := over(t, first, second)
	busy := func(_ http.ResponseWriter, r *http.Request) bool {
		own := strings.HasPrefix(r.URL.Path, "/v1/agent/") && r.URL.Path != "/v1/agent/version"
		if own {
			<-r.Context().Done()
		}
		return own
	}
	first.hinder.Store(&busy)
	svc, _ := service(t, "takes-none")
	if _, err := s.NewSession(t.Context(), kv.SessionConfig{Service: svc}); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("NewSession error = %v, want ErrUnavailable", err)
	}
	before := second.calls.Load()
	closeSession(t, openSession(t, s, svc))
	if second.calls.Load() == before {
		t.Error("the second agent was not asked")
	}
}
