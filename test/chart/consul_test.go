package chart

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/consultest"
)

// startConsul starts a Consul server with TLS and ACLs at an address, until the test
// ends, and makes each daemon its policy and its token: files of that name in a folder,
// beside consul-ca.pem.
func startConsul(t *testing.T, address string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	certificates(t, dir, address)
	at := consultest.Here()
	at.Address = address
	servers, err := consultest.RunCluster(file("consul"), []consultest.Place{at}, consultest.ACL, fmt.Sprintf(
		`ports { https = 8501 } tls { https { cert_file = %q key_file = %q ca_file = %q } }`, file("consul.pem"), file("consul-key.pem"), file("consul-ca.pem")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := servers.Stop(); err != nil {
			t.Error(err)
		}
	})
	tokens := consultest.NewTokens("apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd")
	if err := servers.Grant(t.Context(), "../../compose/consul/policies", tokens); err != nil {
		t.Fatal(err)
	}
	for daemon, token := range tokens {
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

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
