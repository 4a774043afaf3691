package rest_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/rest"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
)

// talker sends as many messages as are taken, one in each pause, until its streams
// end.
type talker struct {
	musterv1.UnimplementedControlServiceServer
	pause time.Duration
	text  string
	// ended is told why each stream ended, and after what time.
	ended chan outcome
}

type outcome struct {
	err   error
	after time.Duration
}

func talk[T any](t *talker, s grpc.ServerStreamingServer[T], m *T) error {
	began := time.Now()
	var err error
	for err == nil && s.Context().Err() == nil {
		if err = s.Send(m); err == nil {
			select {
			case <-s.Context().Done():
			case <-time.After(t.pause):
			}
		}
	}
	t.ended <- outcome{err, time.Since(began)}
	return err
}

func (t *talker) Watch(_ *musterv1.WatchRequest, s grpc.ServerStreamingServer[musterv1.WatchResponse]) error {
	return talk(t, s, &musterv1.WatchResponse{ResumeToken: t.text})
}

func (t *talker) ServiceLogs(_ *musterv1.ServiceLogsRequest, s grpc.ServerStreamingServer[musterv1.ServiceLogsResponse]) error {
	return talk(t, s, &musterv1.ServiceLogsResponse{Message: &musterv1.LogMessage{Data: []byte(t.text)}})
}

func (t *talker) TaskLogs(_ *musterv1.TaskLogsRequest, s grpc.ServerStreamingServer[musterv1.TaskLogsResponse]) error {
	return talk(t, s, &musterv1.TaskLogsResponse{Message: &musterv1.LogMessage{Data: []byte(t.text)}})
}

// connect serves one connection as apid does, and returns the client's end of it, which
// the test closes, and what waits for the server's end.
func connect(t *testing.T, server musterv1.ControlServiceServer, guard *auth.Guard) (client net.Conn, over func()) {
	t.Helper()
	handler, err := rest.New(server, func(context.Context) error { return nil }, guard, nil, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	client, conn := net.Pipe()
	listener := single{make(chan net.Conn, 1)}
	listener.conns <- conn
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeHTTP(ctx, handler, listener, time.Second) }()
	return client, func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// guardOf returns a guard that admits the token "good" until it is removed.
func guardOf(t testing.TB, log *zap.Logger, removed *atomic.Bool) *auth.Guard {
	t.Helper()
	guard, err := auth.New(func() string { return "d" }, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	guard.AcceptTokens(func(_ context.Context, token string) (auth.Identity, error) {
		if token != "good" || removed.Load() {
			return auth.Identity{}, errors.New("unknown")
		}
		return auth.Identity{Role: authv1.Role_VIEWER, Name: "vera"}, nil
	})
	server := grpc.NewServer()
	musterv1.RegisterControlServiceServer(server, &musterv1.UnimplementedControlServiceServer{})
	if err := guard.RegisterRules(server.GetServiceInfo()); err != nil {
		t.Fatal(err)
	}
	return guard
}

func open(t *testing.T, client net.Conn, path, accept string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(client, "GET "+path+" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer good\r\nAccept: "+accept+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d", path, resp.StatusCode)
	}
	return resp
}

// TestStreamsEndWithTheirToken removes the token of who has a stream open, whether
// something is sent on it or not: the stream says so, and ends.
func TestStreamsEndWithTheirToken(t *testing.T) {
	t.Parallel()
	const watch, service, task = "/v1/watch", "/v1/services/web/logs?options.follow=true", "/v1/tasks/t/logs?options.follow=true"
	for name, tt := range map[string]struct {
		path, accept string
		pause        time.Duration
		last         string
	}{
		"watch":           {watch, "*/*", time.Second, `{"error":{"code":16`},
		"a quiet watch":   {watch, "*/*", time.Hour, `{"error":{"code":16`},
		"events":          {watch, "text/event-stream", time.Second, `data: {"code":16`},
		"quiet events":    {watch, "text/event-stream", time.Hour, `data: {"code":16`},
		"logs":            {service, "*/*", time.Second, `{"error":{"code":16`},
		"logs as text":    {service, "text/plain", time.Second, "error: credentials are no longer valid"},
		"quiet logs":      {service, "text/plain", time.Hour, "error: credentials are no longer valid"},
		"logs of a task":  {task, "*/*", time.Second, `{"error":{"code":16`},
		"quiet, of a one": {task, "text/plain", time.Hour, "error: credentials are no longer valid"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var removed atomic.Bool
				server := &talker{pause: tt.pause, text: "x", ended: make(chan outcome, 1)}
				client, over := connect(t, server, guardOf(t, zaptest.NewLogger(t), &removed))
				defer over()
				resp := open(t, client, tt.path, tt.accept)
				removal := time.AfterFunc(12*time.Second, func() { removed.Store(true) })
				defer removal.Stop()
				began, last := time.Now(), ""
				lines := bufio.NewScanner(resp.Body)
				for lines.Scan() {
					if lines.Text() != "" {
						last = lines.Text()
					}
				}
				if err := lines.Err(); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took < 12*time.Second || took > 18*time.Second {
					t.Errorf("the stream ended after %v; its token was removed after 12 s", took)
				}
				if !strings.HasPrefix(last, tt.last) {
					t.Errorf("its last line is %q, want %q", last, tt.last)
				}
				<-server.ended
			})
		})
	}
}

// TestSlowReaders: a client that does not read its answer does not keep the server
// waiting forever.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"watch": "/v1/watch", "logs": "/v1/tasks/t/logs?options.follow=true"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &talker{pause: time.Millisecond, text: strings.Repeat("x", 10_000), ended: make(chan outcome, 1)}
				client, over := connect(t, server, nil)
				defer over()
				_ = open(t, client, path, "*/*")
				if got := <-server.ended; got.err == nil || got.after > 40*time.Second {
					t.Errorf("the stream ended after %v with %v, want it cut after half a minute", got.after, got.err)
				}
			})
		})
	}
}

// TestStreamsOutlastTheTimeOfARequest reads from streams that are quiet for longer than
// a request may take.
func TestStreamsOutlastTheTimeOfARequest(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"watch": "/v1/watch", "logs": "/v1/tasks/t/logs?options.follow=true"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &talker{pause: 10 * time.Minute, text: "x", ended: make(chan outcome, 1)}
				client, over := connect(t, server, guardOf(t, zaptest.NewLogger(t), new(atomic.Bool)))
				defer over()
				lines := bufio.NewReader(open(t, client, path, "*/*").Body)
				for range 4 {
					if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "result") {
						t.Fatalf("the stream says %q, %v", line, err)
					}
				}
				if err := client.Close(); err != nil {
					t.Error(err)
				}
				if got := <-server.ended; got.after < 30*time.Minute {
					t.Errorf("the stream ended after %v: %v", got.after, got.err)
				}
			})
		})
	}
}
