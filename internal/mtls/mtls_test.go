package mtls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/mtls"
)

// FuzzMaterial reads certificates and authorities as an apid, or an impostor in its
// place, may answer.
func FuzzMaterial(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	c := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{{Scheme: "spiffe", Host: "d", Path: "/worker/n1"}},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	good := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.Add(good, good)
	f.Add(good, []byte{})
	f.Add([]byte{}, good)
	f.Add(append(keyPEM, good...), append(good, keyPEM...))
	f.Add(good[:len(good)/2], good[:len(good)/2])
	f.Fuzz(func(t *testing.T, certificate, authorities []byte) {
		m, err := mtls.NewMaterial(certificate, keyPEM, authorities)
		if (m == nil) == (err == nil) {
			t.Fatalf("%v and %v", m, err)
		}
		if err == nil && (m.Certificate.Leaf == nil || m.Identity.Name == "" || m.Roots == nil) {
			t.Errorf("half of it is there: %+v", m)
		}
	})
}
