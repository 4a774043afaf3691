package security_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	"github.com/musterhq/muster/test/kit/need"
)

// curlUntrusted is curl's exit code for a server whose certificate it does not trust.
const curlUntrusted = 60

// requestFor makes a key and a request for a certificate that is good for hosts.
func requestFor(t *testing.T, hosts ...string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &x509.CertificateRequest{}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			r.IPAddresses = append(r.IPAddresses, ip)
		} else {
			r.DNSNames = append(r.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// joinFor joins with a request for hosts.
func (c *closed) joinFor(name, token string, hosts ...string) (*tls.Certificate, error) {
	c.t.Helper()
	key, r := requestFor(c.t, hosts...)
	ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
	defer cancel()
	resp, err := c.authority(nil).Join(ctx, &cav1.JoinRequest{Token: token, Request: r, Name: name})
	if err != nil {
		return nil, err
	}
	return pair(c.t, key, resp.Certificate), nil
}

// TestNoDaemonStandsInForAnotherHost asks for apid's host names, and for others, as
// everyone who can have a certificate, and holds the certificates against curl.
func TestNoDaemonStandsInForAnotherHost(t *testing.T) {
	need.Program(t, "curl")
	const host = "apid.example"
	c := start(t, "--certificate-host", host, "--allow-certificate-host", "schedulerd=metrics.example")
	manager, worker := strings.TrimSpace(string(c.file("manager.token"))), strings.TrimSpace(string(c.file("worker.token")))
	// trusts tells whether curl takes what answers at an address for a host.
	trusts := func(t *testing.T, name, address string) bool {
		t.Helper()
		at, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--output", "/dev/null",
			"--cacert", filepath.Join(c.dir, "ca.pem"), "--resolve", net.JoinHostPort(name, port)+":"+at, "https://"+net.JoinHostPort(name, port)+"/").CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == curlUntrusted {
			return false
		}
		if err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
		return true
	}
	if !trusts(t, host, c.rest) {
		t.Fatal("curl does not trust apid itself")
	}
	asked := []string{host, "localhost", "127.0.0.1", "www.example.com", "apid", "metrics.example"}
	holders := map[string]func() (*tls.Certificate, error){
		"schedulerd": func() (*tls.Certificate, error) { return c.joinFor("schedulerd", manager, asked...) },
		// With the join token alone, and not the cluster's key.
		"apid": func() (*tls.Certificate, error) { return c.joinFor("apid", manager, asked...) },
		// Where a certificate has no DNS name, curl compares the common name.
		"a worker with the name of a host": func() (*tls.Certificate, error) { return c.joinFor(host, worker, asked...) },
		"schedulerd that renews": func() (*tls.Certificate, error) {
			first, err := c.join("schedulerd", manager)
			if err != nil {
				return nil, err
			}
			key, r := requestFor(t, append(asked, "*.example", "localhost\n")...)
			ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
			defer cancel()
			resp, err := c.authority(first).Renew(ctx, &cav1.RenewRequest{Request: r})
			if err != nil {
				return nil, err
			}
			return pair(t, key, resp.Certificate), nil
		},
	}
	for who, certificate := range holders {
		t.Run(who, func(t *testing.T) {
			own, err := certificate()
			if err != nil {
				t.Fatal(err)
			}
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}})
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: callTimeout}
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			defer func() {
				if err := errors.Join(server.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			}()
			for _, name := range []string{host, "localhost", "www.example.com"} {
				if trusts(t, name, l.Addr().String()) {
					t.Errorf("curl trusts it as %s; its hosts are %q, %v", name, own.Leaf.DNSNames, own.Leaf.IPAddresses)
				}
			}
			if allowed := strings.HasPrefix(who, "schedulerd"); trusts(t, "metrics.example", l.Addr().String()) != allowed {
				t.Errorf("curl trusts it as metrics.example, which was allowed to schedulerd: %v, want %v", !allowed, allowed)
			}
		})
	}
	for _, wrong := range []string{"*", "*.example", "localhost\n", "a..b", "0.0.0.0"} {
		_, err := c.joinFor("schedulerd", manager, wrong)
		expect(t, "a join with a request for "+wrong, err, codes.InvalidArgument)
	}
	c.logged("apid", `"host names left out of certificate"`, `"identity":"schedulerd"`, host)
}
