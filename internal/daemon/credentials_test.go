package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true})
	return a
}

// sign makes a certificate and writes it and its key to files of that name. The
// first is the authority's own.
func (a *authority) sign(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Identities that certificates of the tests state.
const (
	apidID       = "spiffe://test/manager/apid"
	dispatcherID = "spiffe://test/manager/dispatcherd"
	workerID     = "spiffe://test/worker/node1"
	viewerID     = "spiffe://test/user/viewer/vera"
	adminID      = "spiffe://test/user/admin/ada"
	strangerID   = "spiffe://elsewhere/manager/apid"
)

// credentials are those of a holder for whom this authority signed.
func (a *authority) credentials(t *testing.T, name, id string) daemon.Credentials {
	t.Helper()
	a.issue(t, name, id)
	creds, err := a.settings(name).Credentials()
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

// issue signs for an identity.
func (a *authority) issue(t *testing.T, name, id string) {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{uri}}
	a.sign(t, name, c)
}

func (a *authority) settings(name string) *daemon.TLSSettings {
	file := func(name string) string { return filepath.Join(a.dir, name+".pem") }
	return &daemon.TLSSettings{CertFile: file(name), KeyFile: file(name + "-key"), CAFile: file("ca")}
}

// serve serves health with some credentials until the test ends, and returns
// the address.
func serve(t *testing.T, creds daemon.Credentials) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, _ := daemon.NewServer(creds.Server(false))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// ask asks a server whether it serves.
func ask(t *testing.T, creds daemon.Credentials, address string) (healthpb.HealthCheckResponse_ServingStatus, error) {
	t.Helper()
	conn, err := daemon.Dialer(creds.Client)(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return healthOf(t, conn)
}

// healthOf asks over a connection.
func healthOf(t *testing.T, conn *grpc.ClientConn) (healthpb.HealthCheckResponse_ServingStatus, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return answer.GetStatus(), err
}

func TestMutualTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	apid := serve(t, ours.credentials(t, "server", apidID))
	stranger := serve(t, theirs.credentials(t, "server", apidID))
	impostor := serve(t, ours.credentials(t, "impostor", workerID))
	elsewhere := serve(t, ours.credentials(t, "elsewhere", strangerID))
	plain := serve(t, daemon.Plain())
	client := ours.credentials(t, "client", workerID)
	narrow := client
	narrow.Client = client.ClientOf(authv1.Role_DISPATCHERD)
	tests := map[string]struct {
		client  daemon.Credentials
		address string
		ok      bool
	}{
		"both ours":                      {client, apid, true},
		"plain client":                   {daemon.Plain(), apid, false},
		"client of another authority":    {theirs.credentials(t, "client", workerID), apid, false},
		"server of another authority":    {client, stranger, false},
		"server that is plain":           {client, plain, false},
		"server that is a worker":        {client, impostor, false},
		"server of another trust domain": {client, elsewhere, false},
		"another kind of daemon":         {narrow, apid, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, test.client, test.address)
			if test.ok && (err != nil || got != healthpb.HealthCheckResponse_SERVING) {
				t.Errorf("Check = %v, %v, want SERVING", got, err)
			}
			if code := status.Code(err); !test.ok && code != codes.Unavailable {
				t.Errorf("Check = %v, %v, want code Unavailable", got, err)
			}
		})
	}
}

// TestOperationsAreGuarded asks for pages with certificates of several people,
// with one of another authority, and without any.
func TestOperationsAreGuarded(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	creds := ours.credentials(t, "server", apidID)
	registry := prometheus.NewRegistry()
	core, logs := observer.New(zap.WarnLevel)
	guard, err := auth.New(creds.Domain, zap.New(core), registry)
	if err != nil {
		t.Fatal(err)
	}
	guard.AcceptTokens(func(context.Context, string) (auth.Identity, error) {
		return auth.Identity{Role: authv1.Role_ADMIN, Name: "ada"}, nil
	})
	ill := func() error { return errors.New("the store is away") }
	server := httptest.NewUnstartedServer(daemon.OpsHandler(registry, ill, guard))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Listener = tls.NewListener(server.Listener, creds.HTTP())
	server.Start()
	defer server.Close()

	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	get := func(a *authority, id, token, path string) (int, string) {
		tlsConfig := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
		if id != "" {
			a.issue(t, "client", id)
			pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "client.pem"), filepath.Join(a.dir, "client-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			// Offered whatever authorities the server names.
			tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		transport := &http.Transport{TLSClientConfig: tlsConfig}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+server.Listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			return 0, ""
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	tests := map[string]struct {
		a               *authority
		id, token, path string
		want            int
	}{
		"metrics for a viewer":       {ours, viewerID, "", "/metrics", http.StatusOK},
		"metrics for a worker":       {ours, workerID, "", "/metrics", http.StatusForbidden},
		"metrics without anything":   {nil, "", "", "/metrics", http.StatusUnauthorized},
		"metrics for a token":        {nil, "", "admin", "/metrics", http.StatusUnauthorized},
		"metrics for a neighbour":    {ours, strangerID, "", "/metrics", http.StatusUnauthorized},
		"metrics for a stranger":     {theirs, adminID, "", "/metrics", 0},
		"profiles for an admin":      {ours, adminID, "", "/debug/pprof/cmdline", http.StatusOK},
		"profiles for a viewer":      {ours, viewerID, "", "/debug/pprof/cmdline", http.StatusForbidden},
		"profiles for a token":       {nil, "", "admin", "/debug/pprof/cmdline", http.StatusUnauthorized},
		"a viewer with a token":      {ours, viewerID, "admin", "/debug/pprof/cmdline", http.StatusForbidden},
		"health without anything":    {nil, "", "", "/healthz", http.StatusServiceUnavailable},
		"a certificate of no muster": {ours, "https://example.com/", "", "/metrics", http.StatusUnauthorized},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			code, body := get(test.a, test.id, test.token, test.path)
			if code != test.want {
				t.Errorf("status %d, want %d: %s", code, test.want, body)
			}
			if test.path == "/healthz" && strings.Contains(body, "store") {
				t.Errorf("health tells a stranger why: %s", body)
			}
			if test.id == "" && code == http.StatusUnauthorized && (strings.Contains(body, "token") || !strings.Contains(body, "client certificate")) {
				t.Errorf("the refusal asks for something else than a certificate: %s", body)
			}
		})
	}
	refused := logs.FilterMessage("call is refused").Filter(func(e observer.LoggedEntry) bool {
		return e.ContextMap()["identity"] == "worker node1"
	})
	if refused.Len() != 1 {
		t.Fatalf("log of refusals: %v", logs.All())
	}
	fields := refused.All()[0].ContextMap()
	if fields["call"] != "/metrics" || fields["serial"] == "" || !strings.HasPrefix(fmt.Sprint(fields["peer"]), "127.0.0.1:") {
		t.Errorf("a refusal is logged with %v", fields)
	}
	if daemon.Plain().HTTP() != nil {
		t.Error("plain credentials have TLS for HTTP")
	}
}

func TestCredentialsNameTheFlag(t *testing.T) {
	a := newAuthority(t)
	a.credentials(t, "daemon", apidID)
	tests := map[string]struct {
		change func(*daemon.TLSSettings)
		want   string
	}{
		"no certificate":       {func(s *daemon.TLSSettings) { s.CertFile += "x" }, "--tls-cert-file"},
		"the key of another":   {func(s *daemon.TLSSettings) { s.KeyFile = a.settings("ca").KeyFile }, "--tls-key-file"},
		"no authority":         {func(s *daemon.TLSSettings) { s.CAFile += "x" }, "--tls-ca-file"},
		"the authority alone":  {func(s *daemon.TLSSettings) { s.CertFile, s.KeyFile = "", "" }, "--tls-cert-file"},
		"no certificate in it": {func(s *daemon.TLSSettings) { s.CAFile = s.KeyFile }, "--tls-ca-file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := a.settings("daemon")
			test.change(s)
			_, err := s.Credentials()
			expectFaults(t, err, test.want)
		})
	}
}

// TestReload replaces the files of a certificate while a daemon runs: by the next
// one, by nonsense, and by that of another daemon.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		creds := a.credentials(t, "apid", apidID)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		core, logs := observer.New(zap.InfoLevel)
		go func() { ended <- a.settings("apid").Reload(ctx, creds, zap.New(core)) }()
		said := func(want string, n int) {
			t.Helper()
			time.Sleep(time.Minute)
			// The files are looked at in this very moment, too: they must not be
			// written before that is done.
			synctest.Wait()
			if got := logs.FilterMessage(want).Len(); got != n {
				t.Errorf("%q was logged %d times, want %d", want, got, n)
			}
		}
		const taken, refused = "certificate reloaded", "certificate files are invalid; keeping the former ones"
		said(taken, 0)
		a.issue(t, "apid", apidID)
		said(taken, 1)
		a.issue(t, "apid", dispatcherID)
		said(refused, 1)
		if err := os.WriteFile(a.settings("apid").CertFile, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		said(refused, 2)
		a.issue(t, "apid", apidID)
		said(taken, 2)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
