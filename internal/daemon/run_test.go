package daemon_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
)

// testd is a daemon that holds a lock while it runs, and ends when it may.
type testd struct {
	env daemon.Env
	// up is closed when it has its lock.
	up chan struct{}
	// told is closed when it is told to end; it ends when may is closed.
	told, may chan struct{}
	err       error
}

func (d *testd) Run(ctx context.Context) error {
	session, err := d.env.Session(ctx)
	if err != nil {
		return err
	}
	if _, err := session.Acquire(ctx, "testd/lock", nil); err != nil {
		return err
	}
	close(d.up)
	<-ctx.Done()
	close(d.told)
	<-d.may
	return d.err
}

func (d *testd) View() daemon.View { return nil }

// host is a Host, and a daemon that runs in it.
type host struct {
	*daemon.Host
	t        *testing.T
	listener net.Listener
	address  string
	daemon   *testd
	cancel   context.CancelFunc
	ended    chan error
}

// start runs a testd until the test ends or cancel is called.
func start(t *testing.T, store kv.KV, grace time.Duration, change ...func(*daemon.Spec)) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{
		Host: &daemon.Host{
			KV: store, Prefix: "test", Credentials: daemon.Plain(), Logger: zaptest.NewLogger(t), Metrics: prometheus.NewRegistry(),
			Version: "v1", StopTimeout: 2 * grace,
		},
		t: t, listener: l, address: l.Addr().String(), ended: make(chan error, 1),
	}
	h.daemon = &testd{up: make(chan struct{}), told: make(chan struct{}), may: make(chan struct{})}
	spec := daemon.Spec{Name: "testd", Listener: l, Build: func(env daemon.Env) (daemon.Service, error) {
		h.daemon.env = env
		return h.daemon, nil
	}}
	for _, f := range change {
		f(&spec)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	go func() { h.ended <- h.Run(ctx, spec) }()
	return h
}

// expectListenerClosed looks at the listener itself: its port may belong to another
// program by now.
func (h *host) expectListenerClosed() {
	h.t.Helper()
	l, ok := h.listener.(*net.TCPListener)
	if !ok {
		h.t.Fatalf("the listener is a %T", h.listener)
	}
	if err := l.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		h.t.Errorf("the daemon listens still: SetDeadline = %v, want %v", err, net.ErrClosed)
	}
}

// watchHealth opens a stream to the daemon's health service.
func (h *host) watchHealth() healthpb.Health_WatchClient {
	h.t.Helper()
	conn, err := daemon.Dialer(daemon.Plain().Client)(h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	stream, err := healthpb.NewHealthClient(conn).Watch(h.t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return stream
}

func expectHealth(t *testing.T, stream healthpb.Health_WatchClient, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	answer, err := stream.Recv()
	if err != nil || answer.GetStatus() != want {
		t.Fatalf("health = %v, %v, want %v", answer.GetStatus(), err, want)
	}
}

// TestEndsInOrder ends a daemon and looks at each step: it says that it does not
// serve while it still works; then its session ends; then calls may finish; and
// those that do not are cut off.
func TestEndsInOrder(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const grace = time.Second
	h := start(t, store, grace)
	<-h.daemon.up
	stream := h.watchHealth()
	expectHealth(t, stream, healthpb.HealthCheckResponse_SERVING)
	if m := h.daemon.env.Member; m.Daemon != "testd" || m.Address != h.address || m.Version != "v1" || m.Instance == "" || m.Started.IsZero() {
		t.Errorf("Member = %+v", m)
	}

	h.cancel()
	<-h.daemon.told
	expectHealth(t, stream, healthpb.HealthCheckResponse_NOT_SERVING)
	if got, err := ask(t, daemon.Plain(), h.address); err != nil || got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("while the daemon ends, Check = %v, %v, want NOT_SERVING", got, err)
	}
	if _, err := store.Get(t.Context(), "testd/lock"); err != nil {
		t.Errorf("the session ended before the daemon: %v", err)
	}

	_, index, err := store.List(t.Context(), "testd/", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	close(h.daemon.may)
	began := time.Now()
	if pairs, _, err := store.List(t.Context(), "testd/", kv.ListOptions{After: index}); err != nil || len(pairs) != 0 {
		t.Errorf("after the daemon's end: %v, %v, want its lock to go", pairs, err)
	}
	if len(h.ended) != 0 && time.Since(began) < grace {
		t.Error("Run returned while a call is open")
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream error = %v, want it cut off", err)
	}
	if err := <-h.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(began); took < grace || took > time.Minute {
		t.Errorf("open calls were cut off after %v, want the grace time of %v", took, grace)
	}
	h.expectListenerClosed()
	if _, err := h.daemon.env.Session(t.Context()); err == nil {
		t.Error("a daemon that has ended can open sessions")
	}
}

func TestRunTellsFailures(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	t.Run("Build", func(t *testing.T) {
		h := start(t, newStore(t), time.Second, func(s *daemon.Spec) {
			s.Build = func(daemon.Env) (daemon.Service, error) { return nil, broken }
		})
		err := <-h.ended
		expectFaults(t, err, "testd: broken")
		h.expectListenerClosed()
	})
	t.Run("Daemon", func(t *testing.T) {
		h := start(t, newStore(t), time.Second)
		<-h.daemon.up
		h.daemon.err = broken
		close(h.daemon.may)
		h.cancel()
		expectFaults(t, <-h.ended, "testd: broken")
	})
	t.Run("Beside", func(t *testing.T) {
		h := start(t, newStore(t), time.Second, func(s *daemon.Spec) {
			s.Beside = func(daemon.Service) []daemon.Task {
				return []daemon.Task{{Name: "beside", Run: func(context.Context) error { return broken }}}
			}
		})
		close(h.daemon.may)
		expectFaults(t, <-h.ended, "beside: broken")
	})
	t.Run("Listener", func(t *testing.T) {
		h := start(t, newStore(t), time.Second, func(s *daemon.Spec) { _ = s.Listener.Close() })
		close(h.daemon.may)
		if err := <-h.ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run error = %v, want that the listener is closed", err)
		}
	})
}

// TestMetricsAreApart runs two daemons over one registry, as muster dev does: what
// both call the same must not clash.
func TestMetricsAreApart(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var names []string
	registry := prometheus.NewRegistry()
	for _, name := range []string{"oned", "otherd"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		h := &daemon.Host{
			KV: newStore(t), Prefix: "test", Credentials: daemon.Plain(), Logger: zaptest.NewLogger(t), Metrics: registry, StopTimeout: time.Second,
		}
		err = h.Run(ctx, daemon.Spec{Name: name, Listener: l, Build: func(env daemon.Env) (daemon.Service, error) {
			mu.Lock()
			names = append(names, env.Member.Daemon)
			mu.Unlock()
			return idle{}, env.Metrics.Register(prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_test_total", Help: "A test."}))
		}})
		if err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(names, []string{"oned", "otherd"}) {
		t.Errorf("built: %v", names)
	}
}

// idle is a daemon that does nothing.
type idle struct{}

func (idle) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (idle) View() daemon.View { return nil }
