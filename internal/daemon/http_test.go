package daemon_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/musterhq/muster/internal/daemon"
)

// dialPage connects to a server of a handler, which ends with the test.
func dialPage(t *testing.T, handler http.Handler) net.Conn {
	t.Helper()
	l := bufconn.Listen(1 << 10)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeHTTP(ctx, handler, l, time.Second) }()
	conn, err := l.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// askPage sends a request over a connection and returns the answer's status and body.
func askPage(t *testing.T, conn net.Conn, from *bufio.Reader, request string) (int, string) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestUnreadBodiesEndTheConnection asks the operations port for pages with a body that
// no page reads, and never ends it.
func TestUnreadBodiesEndTheConnection(t *testing.T) {
	for name, body := range map[string]string{"not sent": "Content-Length: 100000\r\n\r\n", "chunked": "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"} {
		for _, path := range []string{"/metrics", "/healthz", "/nowhere"} {
			t.Run(name+", "+path, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					conn := dialPage(t, daemon.OpsHandler(prometheus.NewRegistry(), func() error { return nil }, nil))
					began := time.Now()
					from := bufio.NewReader(conn)
					askPage(t, conn, from, "GET "+path+" HTTP/1.1\r\nHost: h\r\n"+body)
					if _, err := io.Copy(io.Discard, from); err != nil {
						t.Error(err)
					}
					if took := time.Since(began); took > 6*time.Second {
						t.Errorf("the connection ended after %v", took)
					}
				})
			})
		}
	}
}

// TestAnswersThatAreNotReadEnd asks for a page and reads nothing of it.
func TestAnswersThatAreNotReadEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Duration, 1)
		conn := dialPage(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			began := time.Now()
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
			ended <- time.Since(began)
		}))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if took := <-ended; took > 31*time.Second {
			t.Errorf("the answer was written for %v", took)
		}
	})
}

// TestSlowAnswersArrive: a client that reads slowly gets all of an answer, and one that
// waits long for the first byte gets it too.
func TestSlowAnswersArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, pause = 1 << 20, 10 * time.Minute
		conn := dialPage(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
				t.Error("the request ended before its answer")
			case <-time.After(pause):
			}
			_, _ = io.WriteString(w, strings.Repeat("x", size))
		}))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		began, got := time.Now(), int64(0)
		for err == nil {
			var n int64
			n, err = io.CopyN(io.Discard, resp.Body, 4<<10)
			got += n
			time.Sleep(time.Second)
		}
		if got != size || time.Since(began) < time.Minute {
			t.Errorf("%d bytes arrived in %v, want %d: %v", got, time.Since(began), size, err)
		}
	})
}

// TestConnectionsAreKeptForTheNextRequest for a while, and not longer.
func TestConnectionsAreKeptForTheNextRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := dialPage(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
		from := bufio.NewReader(conn)
		for range 3 {
			if code, body := askPage(t, conn, from, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"); code != http.StatusOK || body != "hello" {
				t.Fatalf("status %d, %q", code, body)
			}
			time.Sleep(90 * time.Second)
		}
		began := time.Now()
		if _, err := io.Copy(io.Discard, from); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("a connection without requests ended after %v more", took)
		}
	})
}

// TestConnectionsWithoutCallsEnd: a client that only answers pings does not keep a
// connection, and one that has a call open does.
func TestConnectionsWithoutCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveBounded(t)
		idle, busy := attack(t, l), attack(t, l)
		for _, a := range []*attacker{idle, busy} {
			a.acknowledge()
		}
		busy.call(1, healthpb.Health_Watch_FullMethodName, message(false, nil))
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		idle.until("end of the connection", func(f http2.Frame) bool {
			g, ok := f.(*http2.GoAwayFrame)
			return ok && g.ErrCode == http2.ErrCodeNo
		})
		busy.call(3, healthpb.Health_Check_FullMethodName, message(false, nil))
		busy.until("answer", trailer(3, codes.OK))
	})
}

// TestHeadersThatDoNotEnd: half of a call's headers do not hold a connection.
func TestHeadersThatDoNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t, serveBounded(t))
		began := time.Now()
		a.must(a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0}}))
		for range a.frames {
			continue
		}
		if took := time.Since(began); took > 41*time.Second {
			t.Errorf("the connection ended after %v", took)
		}
	})
}
