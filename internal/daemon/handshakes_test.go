package daemon_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
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

	"github.com/musterhq/muster/internal/daemon"
)

// soon is how long a client with a certificate waits for its answer: less than
// servers wait for a handshake.
const soon = 5 * time.Second

// certificate issues a certificate and loads it.
func (a *authority) certificate(t *testing.T, name, id string) *tls.Certificate {
	t.Helper()
	a.issue(t, name, id)
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// dialFrom connects from an address of this machine until the test ends.
func dialFrom(t *testing.T, host, address string) net.Conn {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestSilentConnectionsDoNotKeepCertificatesOut opens more connections without a
// certificate than a port may have, from twenty hosts. A worker at the address of one of
// them, and a daemon, are still served.
func TestSilentConnectionsDoNotKeepCertificatesOut(t *testing.T) {
	ca := newAuthority(t)
	creds := ca.credentials(t, "server", apidID)
	serveGRPC := func(unauthenticated bool) func(context.Context, net.Listener) error {
		return func(ctx context.Context, l net.Listener) error {
			server, _ := daemon.NewServer(creds.Server(unauthenticated))
			return daemon.ServeGRPC(ctx, server, l, time.Second)
		}
	}
	askGRPC := func(t *testing.T, name, id, address string) error {
		t.Helper()
		_, err := ask(t, ca.credentials(t, name, id), address)
		return err
	}
	askHTTP := func(t *testing.T, name, id, address string) error {
		t.Helper()
		return from(t, "127.0.0.1", ca.certificate(t, name, id)).get(t, "https://"+address)
	}
	attacks := map[string]func(*testing.T, net.Conn){
		"nothing is sent": func(*testing.T, net.Conn) {},
		"half a handshake": func(t *testing.T, conn net.Conn) {
			t.Helper()
			// An error says that the server has closed the connection.
			_, _ = io.WriteString(conn, "\x16\x03\x01")
		},
		"no request": func(t *testing.T, conn net.Conn) {
			t.Helper()
			_ = tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}}).HandshakeContext(t.Context())
		},
	}
	for server, s := range map[string]struct {
		run func(context.Context, net.Listener) error
		ask func(t *testing.T, name, id, address string) error
	}{
		"gRPC for workers and daemons": {serveGRPC(false), askGRPC},
		"gRPC for people":              {serveGRPC(true), askGRPC},
		"REST and operations":          {serveSecured(t, creds), askHTTP},
	} {
		for attack, hold := range attacks {
			t.Run(server+", "+attack, func(t *testing.T) {
				const hosts, perHost = 20, 4
				b := serveConnections(t, daemon.ConnectionSettings{Most: hosts * perHost / 2, PerHost: perHost}, true, s.run)
				for i := range hosts {
					for range perHost {
						hold(t, dialFrom(t, fmt.Sprintf("127.0.0.%d", 1+i), b.address))
					}
				}
				for name, id := range map[string]string{"worker": workerID, "daemon": dispatcherID} {
					began := time.Now()
					if err := s.ask(t, name, id, b.address); err != nil {
						t.Errorf("a %s is not served: %v", name, err)
					}
					if took := time.Since(began); took > soon {
						t.Errorf("a %s is served after %v", name, took)
					}
				}
			})
		}
	}
}

// blockedSigner never proves that it has the key.
type blockedSigner struct {
	crypto.Signer
	asked chan struct{}
	end   context.Context
}

func (s *blockedSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	close(s.asked)
	<-s.end.Done()
	return nil, s.end.Err()
}

// TestCertificatesCountOnceTheirKeyIsProved: a daemon shows its certificate to everyone,
// so a connection that only presents it must not count for its identity.
func TestCertificatesCountOnceTheirKeyIsProved(t *testing.T) {
	ca := newAuthority(t)
	b := serveConnections(t, daemon.ConnectionSettings{Most: 100, PerHost: 1}, true, serveSecured(t, ca.credentials(t, "server", apidID)))
	genuine := ca.certificate(t, "daemon", dispatcherID)
	signer, ok := genuine.PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatalf("the key is a %T", genuine.PrivateKey)
	}
	blocked := &blockedSigner{Signer: signer, asked: make(chan struct{}), end: t.Context()}
	shown := *genuine
	shown.PrivateKey = blocked
	conn := tls.Client(dialFrom(t, "127.0.0.2", b.address), &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil },
	})
	go func() { _ = conn.HandshakeContext(t.Context()) }()
	<-blocked.asked
	if err := from(t, "127.0.0.1", genuine).get(t, "https://"+b.address); err != nil {
		t.Fatalf("the daemon is refused: %v", err)
	}
}

// TestFullHandshakeQueueClosesTheOldest tests which connection ends when one more comes.
func TestFullHandshakeQueueClosesTheOldest(t *testing.T) {
	ca := newAuthority(t)
	creds := ca.credentials(t, "server", apidID)
	connections, err := daemon.NewConnections(daemon.ConnectionSettings{Most: 16, PerHost: 3}, true, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	raw := newEndless(100)
	l := connections.Listen(raw, "test")
	expectClosed := func(what string, c *silentConn, want bool) {
		t.Helper()
		if c.closed != want {
			t.Errorf("%s: closed is %v, want %v", what, c.closed, want)
		}
	}
	// A host has three, and its fourth takes the place of its first.
	other := raw.add("10.0.0.9")
	first := raw.add("10.0.0.1")
	second := raw.add("10.0.0.1")
	raw.add("10.0.0.1")
	raw.add("10.0.0.1")
	raw.acceptAll(t, l)
	expectClosed("the only one of another host", other, false)
	expectClosed("the first one of the host", first, true)
	expectClosed("the second one of the host", second, false)
	// A quarter of all connections have not finished: a fifth takes the place of the oldest.
	newest := raw.add("10.0.0.2")
	accepted := raw.acceptAll(t, l)
	expectClosed("the oldest one", other, true)
	expectClosed("the newest one", newest, false)
	// One that has finished its handshake is out of the queue.
	if _, err := creds.Keep(accepted[0], tls.ConnectionState{}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		raw.add(fmt.Sprintf("10.0.1.%d", i))
	}
	raw.acceptAll(t, l)
	expectClosed("one whose handshake has finished", newest, false)
	expectClosed("the second one of the host", second, true)
	// One that is closed meanwhile is not served.
	last := raw.add("10.0.2.1")
	accepted = raw.acceptAll(t, l)
	for i := range 4 {
		raw.add(fmt.Sprintf("10.0.3.%d", i))
	}
	raw.acceptAll(t, l)
	expectClosed("one that four came after", last, true)
	if _, err := creds.Keep(accepted[0], tls.ConnectionState{}); err == nil {
		t.Error("a connection that is closed is kept")
	}
}

// TestFullPortKeepsRoomForHandshakes fills a port with connections that have shown a
// certificate. Peers that send nothing then do not end the handshake of another one.
func TestFullPortKeepsRoomForHandshakes(t *testing.T) {
	const most = 16
	ca := newAuthority(t)
	creds := ca.credentials(t, "server", apidID)
	certificate, err := x509.ParseCertificate(ca.certificate(t, "worker", workerID).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	shown := tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}, VerifiedChains: [][]*x509.Certificate{{certificate}}}
	connections, err := daemon.NewConnections(daemon.ConnectionSettings{Most: most}, true, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	raw := newEndless(3 * most)
	l := connections.Listen(raw, "test")
	kept := 0
	var refused error
	for i := 0; refused == nil && i < most; i++ {
		raw.add(fmt.Sprintf("10.0.0.%d", i))
		if _, refused = creds.Keep(raw.acceptAll(t, l)[0], shown); refused == nil {
			kept++
		}
	}
	if want := most - most/4; kept != want || refused == nil {
		t.Errorf("%d connections with a certificate are kept, and the next one: %v; want %d, and an error", kept, refused, want)
	}
	honest := raw.add("10.0.1.1")
	handshake := raw.acceptAll(t, l)
	for i := range most/4 - 1 {
		raw.add(fmt.Sprintf("10.0.2.%d", i))
	}
	raw.acceptAll(t, l)
	if len(handshake) != 1 || honest.closed {
		t.Error("peers that send nothing have ended a handshake although their part has room")
	}
	raw.add("10.0.3.1")
	raw.acceptAll(t, l)
	if !honest.closed {
		t.Error("handshakes have more than their part")
	}
}

// TestHTTPWithoutTLSIsAnswered: a client that forgets the s of https learns what is wrong.
func TestHTTPWithoutTLSIsAnswered(t *testing.T) {
	b := serveConnections(t, daemon.DefaultConnectionSettings(), true, serveSecured(t, newAuthority(t).credentials(t, "server", apidID)))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.address, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(answer), "HTTPS") {
		t.Errorf("the answer is %s: %s", resp.Status, answer)
	}
}
