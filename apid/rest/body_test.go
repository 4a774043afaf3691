package rest_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// single is a listener of one connection.
type single struct {
	conns chan net.Conn
}

func (s single) Accept() (net.Conn, error) {
	if c, ok := <-s.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (s single) Close() error   { close(s.conns); return nil }
func (s single) Addr() net.Addr { return &net.TCPAddr{} }

// TestUnfinishedBodiesEndTheConnection sends bodies that do not end, as a client that
// may call and as one that may not.
func TestUnfinishedBodiesEndTheConnection(t *testing.T) {
	t.Parallel()
	const announced, dripped = "Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n"
	for name, test := range map[string]struct {
		token, body string
		drip        bool
		want        int
		within      time.Duration
	}{
		"viewer, not sent":   {"good", announced, false, http.StatusRequestTimeout, 31 * time.Second},
		"viewer, dripped":    {"good", dripped, true, http.StatusRequestTimeout, 31 * time.Second},
		"stranger, not sent": {"wrong", announced, false, http.StatusUnauthorized, 6 * time.Second},
		"stranger, dripped":  {"wrong", dripped, true, http.StatusUnauthorized, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, over := connect(t, musterv1.UnimplementedControlServiceServer{}, guardOf(t, zaptest.NewLogger(t), new(atomic.Bool)))
				began := time.Now()
				if _, err := io.WriteString(client, "GET /v1/services HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer "+test.token+"\r\n"+test.body); err != nil {
					t.Fatal(err)
				}
				stop := make(chan struct{})
				var dripping sync.WaitGroup
				if test.drip {
					dripping.Go(func() {
						for {
							select {
							case <-stop:
								return
							case <-time.After(time.Second):
							}
							if _, err := io.WriteString(client, "1\r\na\r\n"); err != nil {
								return
							}
						}
					})
				}
				answer := bufio.NewReader(client)
				resp, err := http.ReadResponse(answer, nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != test.want {
					t.Errorf("status %d, want %d", resp.StatusCode, test.want)
				}
				// What follows it is the connection's end.
				if _, err := io.Copy(io.Discard, answer); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > test.within {
					t.Errorf("the connection ended after %v, want %v at most", took, test.within)
				}
				close(stop)
				over()
				dripping.Wait()
			})
		})
	}
}
