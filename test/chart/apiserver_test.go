//go:build kubernetes

package chart

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// apiserver is a Kubernetes API server over etcd, and nothing else: no controllers, no
// nodes. What is given to it is checked, admitted and kept, and nothing runs.
type apiserver struct {
	url, token, kubeconfig string
	client                 *http.Client
}

// startAPIServer starts one until the test ends.
func startAPIServer(t *testing.T) *apiserver {
	t.Helper()
	dir := t.TempDir()
	etcd := "http://" + freeAddress(t)
	start(t, dir, "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://"+freeAddress(t), "--log-level=warn")
	s := &apiserver{token: rand.Text(), kubeconfig: filepath.Join(dir, "kubeconfig")}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keyFile, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens.csv")
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	write(t, tokens, s.token+`,admin,admin,"system:masters"`)
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	start(t, dir, "kube-apiserver", "--etcd-servers="+etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certificates"), "--token-auth-file="+tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.test", "--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile,
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none")
	s.url = "https://" + address
	// Its certificate is one that it made itself a moment ago.
	s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(s.client.CloseIdleConnections)
	write(t, s.kubeconfig, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": %q, "insecure-skip-tls-verify": true}}], "users": [{"name": "u", "user": {"token": %q}}]}`, s.url, s.token))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for {
		code, answer := s.call(t, http.MethodGet, "/readyz", nil)
		if code == http.StatusOK {
			return s
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(dir, "kube-apiserver.log"))
			t.Fatalf("kube-apiserver is not ready: %d %s\n%s", code, answer, log[max(0, len(log)-4000):])
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// call makes a call of the API. Code 0: there was no answer.
func (s *apiserver) call(t *testing.T, method, path string, body any) (int, string) {
	t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(answer)
}

// helm runs helm against the server.
func (s *apiserver) helm(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := runWith(t, s.kubeconfig, "helm", args...)
	if err != nil {
		t.Fatalf("helm %v: %v\n%s", args, err, errs)
	}
	return out
}

// freeAddress is one without a listener.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
