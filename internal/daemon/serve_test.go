package daemon_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/daemon"
)

// TestServeHTTPLetsRequestsFinish ends a server while two requests are open: one
// that finishes, and one that does not.
func TestServeHTTPLetsRequestsFinish(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived, finish, cut := make(chan struct{}, 2), make(chan struct{}), make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/finishes", func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-finish
		if r.Context().Err() != nil {
			t.Error("the context of a request ended before the grace time")
		}
		_, _ = io.WriteString(w, "done")
	})
	mux.HandleFunc("/hangs", func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
		cut <- r.Context().Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	// The request that finishes does so within it, also on a busy machine.
	const grace = 3 * time.Second
	go func() { ended <- daemon.ServeHTTP(ctx, mux, l, grace) }()
	get := func(path string) <-chan string {
		answer := make(chan string, 1)
		go func() {
			resp, err := http.Get("http://" + l.Addr().String() + path)
			if err != nil {
				answer <- "error"
				return
			}
			defer func() { _ = resp.Body.Close() }()
			body, _ := io.ReadAll(resp.Body)
			answer <- string(body)
		}()
		return answer
	}
	finishes, hangs := get("/finishes"), get("/hangs")
	<-arrived
	<-arrived
	began := time.Now()
	cancel()
	close(finish)
	if got := <-finishes; got != "done" {
		t.Errorf("the request that finishes: %q, want its answer", got)
	}
	if got := <-hangs; got != "error" {
		t.Errorf("the request that hangs: %q, want it cut off", got)
	}
	if err := <-cut; err == nil {
		t.Error("the context of the request that hangs has not ended")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < grace || took > time.Minute {
		t.Errorf("ended after %v, want the grace time of %v", took, grace)
	}
}

func TestOpsHandler(t *testing.T) {
	var sick atomic.Bool
	registry := daemon.NewRegistry()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.ServeHTTP(ctx, daemon.OpsHandler(registry, func() error {
			if sick.Load() {
				return errors.New("no contact with the store")
			}
			return nil
		}, nil), l, time.Second)
	}()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/metrics": "go_goroutines", "/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "daemon"} {
		if code, body := get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s = %d without %q", path, code, want)
		}
	}
	sick.Store(true)
	if code, body := get("/healthz"); code != http.StatusServiceUnavailable || body != "no contact with the store\n" {
		t.Errorf("GET /healthz = %d %q of a daemon that is not well", code, body)
	}
	for _, path := range []string{"/readyz", "/livez"} {
		if code, body := get(path); code != http.StatusOK {
			t.Errorf("GET %s = %d %q while the store is away, want 200: reads are answered", path, code, body)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
