package chart

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const managementToken = "5ec6e7f0-0000-4000-8000-000000000001"

// startConsul starts a Consul server with TLS and ACLs at an address, until the test
// ends, and makes each daemon its policy and its token: files of that name in a folder,
// beside consul-ca.pem.
func startConsul(t *testing.T, address string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	certificates(t, dir, address)
	config, err := json.Marshal(map[string]any{
		"ports":              map[string]int{"http": -1, "https": 8501, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1},
		"addresses":          map[string]string{"https": address},
		"tls":                map[string]any{"https": map[string]string{"cert_file": file("consul.pem"), "key_file": file("consul-key.pem"), "ca_file": file("consul-ca.pem")}},
		"acl":                map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]string{"initial_management": managementToken, "agent": managementToken}},
		"performance":        map[string]int{"raft_multiplier": 1},
		"connect":            map[string]bool{"enabled": false},
		"auto_reload_config": false, "disable_update_check": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, file("consul.json"), string(config))
	start(t, dir, "consul", "agent", "-server", "-bootstrap-expect=1", "-node=chart", "-bind="+address, "-client="+address, "-data-dir="+file("data"), "-config-file="+file("consul.json"))

	ca, err := os.ReadFile(file("consul-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(client.CloseIdleConnections)
	put := func(path string, body any) (int, string) {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+net.JoinHostPort(address, "8501")+"/v1/acl/"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", managementToken)
		resp, err := client.Do(req)
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
	for i, daemon := range []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		rules, err := os.ReadFile("../../compose/consul/policies/" + daemon + ".hcl")
		if err != nil {
			t.Fatal(err)
		}
		await(t, "Consul takes the policy of "+daemon, func() error {
			if code, answer := put("policy", map[string]string{"Name": "muster-" + daemon, "Rules": strings.ReplaceAll(string(rules), "CONSUL_NODE", "chart")}); code != http.StatusOK {
				return fmt.Errorf("%d %s", code, answer)
			}
			return nil
		})
		token := fmt.Sprintf("%08d-2222-4333-8444-555555555555", i+1)
		if code, answer := put("token", map[string]any{"SecretID": token, "Policies": []map[string]string{{"Name": "muster-" + daemon}}}); code != http.StatusOK {
			t.Fatalf("token of %s: %d %s", daemon, code, answer)
		}
		write(t, file(daemon), token+"\n")
	}
	return dir
}

// certificates writes an authority, and a certificate for an address.
func certificates(t *testing.T, dir, address string) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ours, theirs := key(), key()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Consul's authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "consul"}, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		IPAddresses: []net.IP{net.ParseIP(address)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	save := func(name string, c *x509.Certificate, public *ecdsa.PublicKey) {
		der, err := x509.CreateCertificate(rand.Reader, c, authority, public, ours)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	save("consul-ca.pem", authority, &ours.PublicKey)
	save("consul.pem", server, &theirs.PublicKey)
	der, err := x509.MarshalECPrivateKey(theirs)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "consul-key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
}

// start runs a program until the test ends; what it says is in NAME.log.
func start(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		_ = log.Close()
		if said, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s said last:\n%s", name, said[max(0, len(said)-4000):])
		}
	})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// await tries until there is no error.
func await(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for tick := time.Tick(100 * time.Millisecond); ; {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick:
		}
	}
}
