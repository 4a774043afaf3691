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
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

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

// credentials are those of a daemon that this authority signed for, reached at
// some hosts.
func (a *authority) credentials(t *testing.T, name string, hosts ...string) daemon.Credentials {
	t.Helper()
	c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	a.sign(t, name, c)
	creds, err := a.settings(name).Credentials()
	if err != nil {
		t.Fatal(err)
	}
	return creds
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
	server, _ := daemon.NewServer(creds.Server)
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
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return answer.GetStatus(), err
}

func TestMutualTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	server := serve(t, ours.credentials(t, "server", "127.0.0.1"))
	stranger := serve(t, theirs.credentials(t, "server", "127.0.0.1"))
	elsewhere := serve(t, ours.credentials(t, "elsewhere", "elsewhere.example"))
	plain := serve(t, daemon.Plain())
	client := ours.credentials(t, "client")
	named := ours.settings("client")
	named.ServerName = "elsewhere.example"
	byName, err := named.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		client  daemon.Credentials
		address string
		ok      bool
	}{
		"both ours":                      {client, server, true},
		"plain client":                   {daemon.Plain(), server, false},
		"client of another authority":    {theirs.credentials(t, "client"), server, false},
		"server of another authority":    {client, stranger, false},
		"server that is plain":           {client, plain, false},
		"server of another name":         {client, elsewhere, false},
		"server of the name that is set": {byName, elsewhere, true},
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

// TestMutualTLSOfHTTP gets a page with a certificate of ours, and not without.
func TestMutualTLSOfHTTP(t *testing.T) {
	ours := newAuthority(t)
	creds := ours.credentials(t, "server", "127.0.0.1")
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Listener = tls.NewListener(server.Listener, creds.HTTP)
	server.Start()
	defer server.Close()
	url := "https://" + server.Listener.Addr().String()

	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(ours.dir, "server.pem"), filepath.Join(ours.dir, "server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		certificates []tls.Certificate
		ok           bool
	}{"ours": {[]tls.Certificate{certificate}, true}, "nobody": {nil, false}} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: test.certificates, MinVersion: tls.VersionTLS13}}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(request)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil) != test.ok {
			t.Errorf("%s got %v, %v", name, resp, err)
		}
		transport.CloseIdleConnections()
	}
	if daemon.Plain().HTTP != nil {
		t.Error("plain credentials have TLS for HTTP")
	}
}

func TestCredentialsNameTheFlag(t *testing.T) {
	a := newAuthority(t)
	a.credentials(t, "daemon")
	tests := map[string]struct {
		change func(*daemon.TLSSettings)
		want   string
	}{
		"no certificate":       {func(s *daemon.TLSSettings) { s.CertFile += "x" }, "--tls-cert-file"},
		"the key of another":   {func(s *daemon.TLSSettings) { s.KeyFile = a.settings("ca").KeyFile }, "--tls-key-file"},
		"no authority":         {func(s *daemon.TLSSettings) { s.CAFile += "x" }, "--tls-ca-file"},
		"the authority alone":  {func(s *daemon.TLSSettings) { s.CertFile, s.KeyFile = "", "" }, "--tls-cert-file"},
		"a name alone":         {func(s *daemon.TLSSettings) { *s = daemon.TLSSettings{ServerName: "x"} }, "--tls-cert-file"},
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
