package daemon_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// bounded is a server of HTTP or gRPC whose connections are bounded.
type bounded struct {
	address string
	metrics *prometheus.Registry
	logs    *observer.ObservedLogs
}

// serveConnections runs a server until the test ends.
func serveConnections(t *testing.T, s daemon.ConnectionSettings, secure bool, run func(context.Context, net.Listener) error) *bounded {
	t.Helper()
	core, logs := observer.New(zap.WarnLevel)
	b := &bounded{metrics: prometheus.NewRegistry(), logs: logs}
	connections, err := daemon.NewConnections(s, secure, zap.New(core), b.metrics)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, connections.Listen(l, "test")) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

func servePage(ctx context.Context, l net.Listener) error {
	return daemon.ServeHTTP(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "page") }), l, time.Second)
}

// serveSecured serves the page with TLS.
func serveSecured(t *testing.T, creds daemon.Credentials) func(context.Context, net.Listener) error {
	t.Helper()
	guard, err := auth.New(creds.Domain, zaptest.NewLogger(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, l net.Listener) error {
		return servePage(ctx, guard.Listen(l, creds.HTTP(), creds.Keep))
	}
}

// client holds a connection once it was asked for a page.
type client struct{ transport *http.Transport }

// from returns a client at an address of this machine, with a certificate if there is
// one.
func from(t *testing.T, host string, certificate *tls.Certificate) *client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	c := &client{&http.Transport{DialContext: dialer.DialContext, TLSClientConfig: config}}
	t.Cleanup(c.leave)
	return c
}

func (c *client) leave() { c.transport.CloseIdleConnections() }

func (c *client) get(t *testing.T, url string) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// refused checks how many connections were refused by a bound, and that the log names
// the setting.
func (b *bounded) refused(t *testing.T, bound, setting string, want int) {
	t.Helper()
	if got := b.value(t, "muster_connections_refused_total", bound); got != float64(want) {
		t.Errorf("%v connections were refused by the bound %q, want %d", got, bound, want)
	}
	for _, line := range b.logs.All() {
		if f := line.ContextMap(); f["limit"] == bound && f["setting"] == setting && strings.Contains(line.Message, "too many are open") {
			return
		}
	}
	t.Errorf("the log does not name %s: %v", setting, b.logs.All())
}

// open waits until so many connections are open by the metric: a client may see that
// its connection was refused before the server counts it as closed.
func (b *bounded) open(t *testing.T, want int) {
	t.Helper()
	testwait.True(t, fmt.Sprintf("%d connections are open", want), func() bool {
		return b.value(t, "muster_connections", "test") == float64(want)
	})
}

// value is that of a metric, by its only label.
func (b *bounded) value(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s for %s", name, label)
	return 0
}

// TestConnectionsOfOneHostAreBounded opens one more than a host may have.
func TestConnectionsOfOneHostAreBounded(t *testing.T) {
	b := serveConnections(t, daemon.ConnectionSettings{Most: 100, PerHost: 2}, false, servePage)
	url := "http://" + b.address
	first, second := from(t, "127.0.0.1", nil), from(t, "127.0.0.1", nil)
	for _, c := range []*client{first, second, first} {
		if err := c.get(t, url); err != nil {
			t.Fatal(err)
		}
	}
	if err := from(t, "127.0.0.1", nil).get(t, url); err == nil {
		t.Error("a third connection of the host is served")
	}
	b.refused(t, "host", "--max-connections-per-host", 1)
	if err := from(t, "127.0.0.2", nil).get(t, url); err != nil {
		t.Errorf("another host is not served: %v", err)
	}
	// A connection that ends makes room.
	first.leave()
	late := time.Now().Add(time.Minute)
	for from(t, "127.0.0.1", nil).get(t, url) != nil {
		if time.Now().After(late) {
			t.Fatal("the end of a connection makes no room")
		}
	}
}

// TestConnectionsAreBoundedInAll opens one more than there may be.
func TestConnectionsAreBoundedInAll(t *testing.T) {
	b := serveConnections(t, daemon.ConnectionSettings{Most: 4, PerHost: -1}, false, servePage)
	for range 4 {
		if err := from(t, "127.0.0.1", nil).get(t, "http://"+b.address); err != nil {
			t.Fatal(err)
		}
	}
	if err := from(t, "127.0.0.2", nil).get(t, "http://"+b.address); err == nil {
		t.Error("a fifth connection is served")
	}
	b.refused(t, "all", "--max-connections", 1)
	b.open(t, 4)
}

// TestConnectionsWithoutCertificateLeaveRoom: peers without a certificate have a part of
// all connections, and those with one are counted by identity and not by host.
func TestConnectionsWithoutCertificateLeaveRoom(t *testing.T) {
	ca := newAuthority(t)
	b := serveConnections(t, daemon.ConnectionSettings{Most: 12, PerHost: 2}, true, serveSecured(t, ca.credentials(t, "server", apidID)))
	url := "https://" + b.address
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1"} {
		if err := from(t, host, nil).get(t, url); err != nil {
			t.Fatal(err)
		}
	}
	// Three are a quarter of all.
	if err := from(t, "127.0.0.3", nil).get(t, url); err == nil {
		t.Error("a fourth connection without a certificate is served")
	}
	b.refused(t, "unauthenticated", "--max-connections", 1)
	b.open(t, 3)
}

// TestConnectionsWithCertificateAreCountedByIdentity: many workers behind one address
// have a connection each, and none has more than its share.
func TestConnectionsWithCertificateAreCountedByIdentity(t *testing.T) {
	ca := newAuthority(t)
	certificate := func(name, id string) *tls.Certificate {
		ca.issue(t, name, id)
		pair, err := tls.LoadX509KeyPair(filepath.Join(ca.dir, name+".pem"), filepath.Join(ca.dir, name+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return &pair
	}
	b := serveConnections(t, daemon.ConnectionSettings{Most: 100, PerHost: 2}, true, serveSecured(t, ca.credentials(t, "server", apidID)))
	url := "https://" + b.address
	vera, ada := certificate("vera", viewerID), certificate("ada", adminID)
	for range 2 {
		for _, who := range []*tls.Certificate{vera, ada} {
			if err := from(t, "127.0.0.1", who).get(t, url); err != nil {
				t.Fatalf("of four connections of one host, with two certificates: %v", err)
			}
		}
	}
	if err := from(t, "127.0.0.2", vera).get(t, url); err == nil {
		t.Error("a third connection of an identity is served")
	}
	b.refused(t, "identity", "--max-connections-per-host", 1)
}

// TestWorkersBehindOneAddress connects more workers over gRPC than a host may have
// connections.
func TestWorkersBehindOneAddress(t *testing.T) {
	ca := newAuthority(t)
	creds := ca.credentials(t, "server", dispatcherID)
	b := serveConnections(t, daemon.ConnectionSettings{Most: 100, PerHost: 1}, true, func(ctx context.Context, l net.Listener) error {
		server, _ := daemon.NewServer(creds.Server(false))
		return daemon.ServeGRPC(ctx, server, l, time.Second)
	})
	for _, id := range []string{workerID, "spiffe://test/worker/node2", "spiffe://test/worker/node3"} {
		conn, err := daemon.Dialer(ca.credentials(t, "worker", id).Client)(b.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		conn.Connect()
		if _, err := healthOf(t, conn); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	if _, err := ask(t, ca.credentials(t, "again", workerID), b.address); err == nil {
		t.Error("a second connection of one worker is served")
	}
}

// TestDefaultsOfConnections: with TLS each host is bounded. In the clear none is, because
// nothing tells many workers behind one address from an attacker.
func TestDefaultsOfConnections(t *testing.T) {
	const most = 256
	for name, test := range map[string]struct {
		secure bool
		want   int
	}{"TLS": {true, most}, "in the clear": {false, most + 10}} {
		t.Run(name, func(t *testing.T) {
			connections, err := daemon.NewConnections(daemon.DefaultConnectionSettings(), test.secure, zap.NewNop(), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			raw := newEndless(most + 10)
			var prepared []*silentConn
			for range most + 10 {
				prepared = append(prepared, raw.add("10.0.0.1"))
			}
			raw.acceptAll(t, connections.Listen(raw, "test"))
			open := 0
			for _, c := range prepared {
				if !c.closed {
					open++
				}
			}
			if open != test.want {
				t.Errorf("%d connections of one host are open, want %d", open, test.want)
			}
		})
	}
}

// endless is a listener of prepared connections.
type endless struct {
	net.Listener
	conns chan *silentConn
}

func newEndless(most int) *endless { return &endless{conns: make(chan *silentConn, most)} }

// add prepares a connection of a host.
func (e *endless) add(host string) *silentConn {
	c := &silentConn{host: net.ParseIP(host)}
	e.conns <- c
	return c
}

// acceptAll returns the connections that l accepts.
func (e *endless) acceptAll(t *testing.T, l net.Listener) []net.Conn {
	t.Helper()
	var accepted []net.Conn
	for len(e.conns) > 0 {
		c, err := l.Accept()
		if err != nil {
			break
		}
		accepted = append(accepted, c)
	}
	return accepted
}

func (e *endless) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

// silentConn is a connection whose peer sends nothing.
type silentConn struct {
	net.Conn
	host   net.IP
	closed bool
}

func (c *silentConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.host, Port: 1} }

func (c *silentConn) Close() error {
	c.closed = true
	return nil
}

// TestConnectionSettingsNameTheFlag refuses settings that cannot be.
func TestConnectionSettingsNameTheFlag(t *testing.T) {
	for flag, s := range map[string]daemon.ConnectionSettings{
		"--max-connections:":          {Most: 3, PerHost: 1},
		"--max-connections-per-host:": {Most: 10, PerHost: -2},
	} {
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), flag) {
			t.Errorf("%+v: %v, want an error of %s", s, err, flag)
		}
	}
}
