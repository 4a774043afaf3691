package rest_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/rest"
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

// TestABodyThatDoesNotCome is not waited for for ever.
func TestABodyThatDoesNotCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		handler, err := rest.New(musterv1.UnimplementedControlServiceServer{}, func(context.Context) error { return nil }, nil, nil, zaptest.NewLogger(t))
		if err != nil {
			t.Fatal(err)
		}
		client, conn := net.Pipe()
		listener := single{make(chan net.Conn, 1)}
		listener.conns <- conn
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(listener) }()
		began := time.Now()
		if _, err := io.WriteString(client, "POST /v1/services HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusRequestTimeout || time.Since(began) > time.Minute {
			t.Errorf("status %d after %v, want %d soon", resp.StatusCode, time.Since(began), http.StatusRequestTimeout)
		}
		if err := errors.Join(resp.Body.Close(), client.Close(), server.Close()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}
