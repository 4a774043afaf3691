package security_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// muster runs the command line, with contexts of its own.
func (c *closed) muster(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, filepath.Join(built, "muster"), args...)
		cmd.Env = append(os.Environ(), "MUSTER_CONTEXTS_FILE="+filepath.Join(c.dir, "contexts.json"))
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != exitUnavailable || ctx.Err() != nil {
			return string(out), err
		}
	}
}

// exitUnavailable is what the command line exits with where the cluster does not answer,
// as while the machine stands still.
const exitUnavailable = 5

// certificates issues certificates to people, as an administrator and as others.
func certificates(t *testing.T, c *closed) {
	admin := musterv1.NewControlServiceClient(c.dial(c.api, nil))
	ca := filepath.Join(c.dir, "ca.pem")
	must := func(t *testing.T, stdin string, args ...string) {
		t.Helper()
		if out, err := c.muster(t, stdin, args...); err != nil {
			t.Fatalf("muster %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	refused := func(t *testing.T, want string, args ...string) {
		t.Helper()
		if out, err := c.muster(t, "", args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("muster %s: %v, want a refusal with %q:\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	must(t, c.admin, "login", c.api, "--ca-file", ca, "--name", "admin")

	t.Run("the role holds", func(t *testing.T) {
		dir := filepath.Join(c.dir, "vera")
		must(t, "", "certificate", "create", "vera", "--role", "viewer", "--out", dir, "--save-context", "vera")
		for _, file := range []string{"vera.pem", "vera-key.pem", "ca.pem"} {
			if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v, want mode 0600", file, info, err)
			}
		}
		must(t, "", "login", c.api, "--ca-file", ca, "--name", "files", "--tls-cert-file", filepath.Join(dir, "vera.pem"), "--tls-key-file", filepath.Join(dir, "vera-key.pem"))
		for _, name := range []string{"vera", "files"} {
			must(t, "", "node", "ls", "--context", name)
			refused(t, "you are viewer vera", "service", "create", "--context", name, "--name", "x", "--kind", "process", "--", "/bin/true")
			refused(t, "you are viewer vera", "certificate", "create", "--context", name, "mallory", "--role", "admin", "--out", t.TempDir())
		}
		refused(t, "--force", "certificate", "create", "vera", "--context", "admin", "--out", dir)
		refused(t, "--force", "certificate", "create", "vera", "--context", "admin", "--save-context", "vera")
		must(t, "", "certificate", "create", "vera", "--context", "admin", "--out", dir, "--lifetime", "1h", "--force")
		c.logged("apid", `"call is refused"`, "CreateCertificate", `"identity":"viewer vera"`)
		c.logged("apid", `"certificate is issued to a person"`, `"name":"vera"`, `"role":"VIEWER"`, `"by":"admin`)

		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "vera.pem"), filepath.Join(dir, "vera-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]int{"/v1/nodes": http.StatusOK, "/v1/certificates": http.StatusForbidden} {
			if code := c.httpAs(t, &pair, path); code != want {
				t.Errorf("REST answers %s of a viewer's certificate with %d, want %d", path, code, want)
			}
		}
	})
	t.Run("what a request asks for does not count", func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"apid.example"},
			URIs: []*url.URL{{Scheme: "spiffe", Host: "elsewhere", Path: "/user/admin/root"}, {Scheme: "spiffe", Host: "elsewhere", Path: "/manager/apid"}},
		}, key)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "ada.csr")
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "", "certificate", "create", "ada", "--context", "admin", "--role", "operator", "--request", file, "--out", dir)
		if _, err := os.Stat(filepath.Join(dir, "ada-key.pem")); err == nil {
			t.Error("there is a key, of a user who has one already")
		}
		certificate, err := os.ReadFile(filepath.Join(dir, "ada.pem"))
		if err != nil {
			t.Fatal(err)
		}
		leaf := pair(t, key, certificate).Leaf
		if len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/user/operator/ada" || len(leaf.DNSNames) > 0 || leaf.Subject.CommonName != "ada" || leaf.IsCA {
			t.Errorf("the certificate is for %v, %v, %v", leaf.URIs, leaf.DNSNames, leaf.Subject)
		}
		if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("it is good for %v, want clients only", leaf.ExtKeyUsage)
		}
	})
	t.Run("it lasts for a short time", func(t *testing.T) {
		_, r := request(t)
		create := func(lifetime time.Duration) (*musterv1.CreateCertificateResponse, error) {
			req := &musterv1.CreateCertificateRequest{Name: "ada", Role: "viewer", Request: string(r)}
			if lifetime != 0 {
				req.Lifetime = durationpb.New(lifetime)
			}
			return admin.CreateCertificate(c.with(c.admin), req)
		}
		for asked, want := range map[time.Duration]time.Duration{0: 24 * time.Hour, time.Hour: time.Hour, 720 * time.Hour: 720 * time.Hour} {
			resp, err := create(asked)
			if err != nil {
				t.Fatal(err)
			}
			if lasts := time.Until(resp.ExpiresAt.AsTime()); lasts > want || lasts < want-5*time.Minute {
				t.Errorf("asked for %v it lasts for %v, want %v", asked, lasts, want)
			}
		}
		for _, asked := range []time.Duration{-time.Hour, time.Millisecond, 721 * time.Hour} {
			_, err := create(asked)
			expect(t, asked.String(), err, codes.InvalidArgument)
		}
		_, err := admin.CreateCertificate(c.with(c.admin), &musterv1.CreateCertificateRequest{Name: "../ada", Role: "root", Request: "x"})
		expect(t, "a request that is all wrong", err, codes.InvalidArgument)
		for _, field := range []string{"name", "role", "request"} {
			if err != nil && !strings.Contains(err.Error(), field) {
				t.Errorf("%v does not name %s", err, field)
			}
		}
	})
}

// httpAs asks REST as the holder of a certificate: a read, or a write where there is
// nothing to read.
func (c *closed) httpAs(t *testing.T, who *tls.Certificate, path string) int {
	t.Helper()
	client := &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{*who}},
	}}
	defer client.CloseIdleConnections()
	method := http.MethodGet
	if path == "/v1/certificates" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+c.rest+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}
