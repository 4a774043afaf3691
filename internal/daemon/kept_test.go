package daemon_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/mtls"
)

// material is the credentials of a holder whose certificate this authority signed,
// with the authorities that it trusts.
func (a *authority) material(t *testing.T, name, id string, trusts ...*authority) *mtls.Material {
	t.Helper()
	a.issue(t, name, id)
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s := a.settings(name)
	var roots []byte
	for _, r := range trusts {
		roots = append(roots, read(r.settings("ca").CertFile)...)
	}
	m, err := mtls.NewMaterial(read(s.CertFile), read(s.KeyFile), roots)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// connect connects over a network in memory and watches the health of who is there.
func connect(t *testing.T, l *bufconn.Listener, source *mtls.Source) (*grpc.ClientConn, healthpb.Health_WatchClient) {
	t.Helper()
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })
	conn, err := daemon.Dialer(daemon.Secured(source).Client, dial)("server:1")
	if err != nil {
		t.Fatal(err)
	}
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn, watch
}

// TestConnectionsEndWithTheRoot drops the root that some clients' certificates are of,
// while they have streams open, and then the server's.
func TestConnectionsEndWithTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newAuthority(t), newAuthority(t)
		server := mtls.NewSource(after.material(t, "server", apidID, before, after))
		slow, fresh := mtls.NewSource(before.material(t, "slow", workerID, after)), mtls.NewSource(after.material(t, "fresh", workerID, after))
		l := bufconn.Listen(1 << 20)
		grpcServer, _ := daemon.NewServer(daemon.Secured(server).Server(false))
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- daemon.ServeGRPC(ctx, grpcServer, l, time.Second) }()
		slowConn, slowWatch := connect(t, l, slow)
		freshConn, freshWatch := connect(t, l, fresh)

		if n := server.Set(after.material(t, "server", apidID, after)); n != 1 {
			t.Errorf("%d connections end with the old root, want 1", n)
		}
		dropped := time.Now()
		if _, err := slowWatch.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream of a certificate of the old root ended with %v", err)
		}
		if took := time.Since(dropped); took > 10*time.Second {
			t.Errorf("it ended after %v", took)
		}
		check := func(conn *grpc.ClientConn) error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		}
		if err := check(slowConn); status.Code(err) != codes.Unavailable {
			t.Errorf("a certificate of the old root: %v", err)
		}
		slow.Set(after.material(t, "slow", workerID, after))
		time.Sleep(10 * time.Second)
		if err := check(slowConn); err != nil {
			t.Errorf("with a new certificate: %v", err)
		}
		if err := check(freshConn); err != nil || freshWatch.Context().Err() != nil {
			t.Errorf("one with a certificate of the new root is gone: %v, %v", err, freshWatch.Context().Err())
		}

		// A client ends its connections to servers that it no longer trusts.
		if n := fresh.Set(after.material(t, "fresh", workerID, before)); n != 1 {
			t.Errorf("%d connections end with the root of the server, want 1", n)
		}
		if _, err := freshWatch.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream to a server of the old root ended with %v", err)
		}
		for _, conn := range []*grpc.ClientConn{slowConn, freshConn} {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
		// Peers that have left are forgotten.
		synctest.Wait()
		if n := server.Set(after.material(t, "server", apidID, before)); n != 0 {
			t.Errorf("%d connections are still known", n)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// TestHTTPConnectionsEndWithTheRoot does so to one who reads a page for long.
func TestHTTPConnectionsEndWithTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newAuthority(t), newAuthority(t)
		server := mtls.NewSource(after.material(t, "server", apidID, before, after))
		creds := daemon.Secured(server)
		guard, err := auth.New(creds.Domain, zaptest.NewLogger(t), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		l := bufconn.Listen(1 << 20)
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- daemon.ServeHTTP(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}), guard.Listen(l, creds.HTTP(), creds.Keep), time.Second)
		}()
		person := before.material(t, "vera", viewerID, after)
		transport := &http.Transport{
			DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{*person.Certificate}},
		}
		get := func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://server/", nil)
			if err != nil {
				t.Fatal(err)
			}
			return transport.RoundTrip(req)
		}
		resp, err := get()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if n := server.Set(after.material(t, "server", apidID, after)); n != 1 {
			t.Errorf("%d connections end with the old root, want 1", n)
		}
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the page ended with %v", err)
		}
		if resp, err := get(); err == nil {
			_ = resp.Body.Close()
			t.Error("a certificate of the old root is taken")
		}
		transport.CloseIdleConnections()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
