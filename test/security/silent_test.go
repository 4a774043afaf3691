package security_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// TestSilentHostsDoNotKeepCertificatesOut has twenty hosts open more connections to each
// port of apid than it may have, and send nothing. New connections of a worker and of a
// daemon are served meanwhile.
func TestSilentHostsDoNotKeepCertificatesOut(t *testing.T) {
	const hosts, perHost = 20, 8
	c := start(t, "--max-connections", fmt.Sprint(hosts*perHost/2), "--max-connections-per-host", fmt.Sprint(perHost))
	certificates := map[string]*tls.Certificate{"viewer": c.user(authv1.Role_VIEWER, 0)}
	for name, token := range map[string]string{"node1": "worker.token", "schedulerd": "manager.token"} {
		pair, err := c.join(name, strings.TrimSpace(string(c.file(token))))
		if err != nil {
			t.Fatal(err)
		}
		certificates[name] = pair
	}
	for _, address := range []string{c.api, c.rest, c.ops} {
		for i := range hosts {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, byte(i))}}
			for range perHost {
				conn, err := dialer.DialContext(t.Context(), "tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
	}
	// The server waits at least ten seconds for a handshake.
	const soon = 5 * time.Second
	for name, pair := range certificates {
		began := time.Now()
		if _, err := healthpb.NewHealthClient(c.dial(c.api, pair)).Check(c.with(""), &healthpb.HealthCheckRequest{}); err != nil {
			t.Errorf("gRPC does not serve %s: %v", name, err)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil },
		}}
		defer transport.CloseIdleConnections()
		for _, address := range []string{c.rest, c.ops} {
			resp, err := (&http.Client{Transport: transport, Timeout: callTimeout}).Get("https://" + address + "/healthz")
			if err != nil {
				t.Errorf("HTTP does not serve %s: %v", name, err)
				continue
			}
			_ = resp.Body.Close()
		}
		if took := time.Since(began); took > soon {
			t.Errorf("%s is served after %v", name, took)
		}
	}
	c.logged("apid", `"connection closed: too many handshakes have not finished"`, `"setting":"--max-connections"`)
}
