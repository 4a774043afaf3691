package daemon_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/consultest"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// viewer is a daemon that only looks at the store.
type viewer struct{ store *store.Store }

func (v *viewer) Run(ctx context.Context) error { return v.store.Run(ctx) }
func (v *viewer) View() daemon.View             { return v.store }

// table has values that are taken as they are.
func table() *store.Table[string] {
	return store.NewTable("things", store.Codec[string]{
		Encode: func(s string) ([]byte, error) { return []byte(s), nil },
		Decode: func(b []byte) (string, error) { return string(b), nil },
	})
}

// TestStartedWhileConsulIsAway: a daemon waits for its store and says so, in its
// log and in every way in which it can be asked for its health; and is well once the
// store is there.
func TestStartedWhileConsulIsAway(t *testing.T) {
	t.Parallel()
	consul := consultest.Start(t)
	if err := consul.Kill(); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	v := &viewer{}
	things := table()
	h := start(t, consul.KV(t), time.Second, func(s *daemon.Spec) {
		s.Build = func(env daemon.Env) (daemon.Service, error) {
			var err error
			v.store, err = store.New(store.Options{KV: env.KV, Prefix: env.Prefix, Logger: zap.New(core), Metrics: env.Metrics}, things)
			return v, err
		}
	})
	waiting := func() bool { return logs.FilterMessage("store is unavailable; waiting for it").Len() > 0 }
	testwait.True(t, "the log says that the daemon waits", waiting)

	stream := h.watchHealth()
	expectHealth(t, stream, healthpb.HealthCheckResponse_NOT_SERVING)
	ops := daemon.OpsHandler(prometheus.NewRegistry(), h.Healthy, nil)
	if code, body := get(ops, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "testd: the tables are not loaded yet") {
		t.Errorf("/healthz = %d %q", code, body)
	}
	if code, body := get(ops, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz = %d %q before the tables are loaded", code, body)
	}
	if r := h.report(); r.View.Loaded || r.Problem == "" || r.View.StaleFor.AsDuration() <= 0 || r.Instance == "" || r.Version != "v1" {
		t.Errorf("report without a store = %v", r)
	}

	if err := consul.Restart(); err != nil {
		t.Fatal(err)
	}
	expectHealth(t, stream, healthpb.HealthCheckResponse_SERVING)
	if err := v.store.Update(t.Context(), func(tx *store.Tx) error { things.Put(tx, "a", "b"); return nil }); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, "the daemon is well", func() bool { return h.Healthy() == nil && h.report().View.Lag.AsDuration() == 0 })
	if code, _ := get(ops, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz = %d with the store there", code)
	}
	if code, body := get(ops, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz = %d %q with the store there", code, body)
	}
	r := h.report()
	var commits uint64
	for _, n := range r.View.Tables[0].Sequences {
		commits += n
	}
	if r.Problem != "" || !r.View.Loaded || r.View.Tables[0].Table != "things" || commits != 1 {
		t.Errorf("report = %v, want one commit to the table and no problem", r)
	}

	// It stays up when the store goes away again: what it knows can be read.
	if err := consul.Kill(); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, "the report says that the store is away", func() bool { return h.report().View.StaleFor.AsDuration() > 0 })
	if got, err := ask(t, daemon.Plain(), h.address); err != nil || got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health = %v, %v while the store is away, want SERVING", got, err)
	}
	h.cancel()
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
}

// TestHealthyOfNoView: who needs no store is well, and who has not loaded it is not.
func TestHealthyOfNoView(t *testing.T) {
	if err := daemon.Healthy(nil); err != nil {
		t.Errorf("a daemon that needs no store is unhealthy: %v", err)
	}
	st, err := store.New(store.Options{KV: newStore(t)}, table())
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Healthy(st); err == nil || errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("a store that was never run: %v, want that it is not loaded", err)
	}
}

// report asks the daemon for its report.
func (h *host) report() *daemonv1.ReportResponse {
	h.t.Helper()
	conn, err := daemon.Dialer(daemon.Plain().Client)(h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	r, err := daemonv1.NewDaemonServiceClient(conn).Report(ctx, &daemonv1.ReportRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func get(h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}
