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
	"path/filepath"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/wait"
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
	etcd := "http://" + network.FreeAddress(t)
	start(t, "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://"+network.FreeAddress(t), "--log-level=warn")
	s := &apiserver{token: rand.Text(), kubeconfig: filepath.Join(dir, "kubeconfig")}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keyFile, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens.csv")
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	write(t, tokens, s.token+`,admin,admin,"system:masters"`)
	address := network.FreeAddress(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	start(t, "kube-apiserver", "--etcd-servers="+etcd, "--bind-address="+host, "--advertise-address="+host, "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certificates"), "--token-auth-file="+tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.test", "--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile,
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none")
	s.url = "https://" + address
	// Its certificate is one that it made itself a moment ago.
	s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(s.client.CloseIdleConnections)
	write(t, s.kubeconfig, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": %q, "insecure-skip-tls-verify": true}}], "users": [{"name": "u", "user": {"token": %q}}]}`, s.url, s.token))
	wait.Within(t, limit, "kube-apiserver is ready", func(context.Context) error {
		if code, answer := s.call(t, http.MethodGet, "/readyz", nil); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, answer)
		}
		return nil
	})
	return s
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
