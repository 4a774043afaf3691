package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

// FuzzTokenID: what is taken for a token has bounds, and an id that can be asked
// for.
func FuzzTokenID(f *testing.F) {
	_, good, _ := auth.NewToken()
	for _, s := range []string{good, good + "x", "muster_", "muster__", "muster_aaaaaaaaaaaa_", "muster_aaaaaaaaaaaa_b", strings.Repeat(good, 10), "Bearer " + good} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := auth.TokenID(s); ok && (len(id) != 12 || len(s) > 128 || !strings.Contains(s, "_"+id+"_")) {
			t.Errorf("%q has id %q", s, id)
		}
	})
}

// FuzzCertificate reads identities of certificates that are whatever they are. One
// that is read has a name that can stand in a log, and is that of its URI.
func FuzzCertificate(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{"spiffe://c/worker/n1", "spiffe://c/user/admin/ada", "spiffe://c/manager/apid", "spiffe://c/worker/a%2fb", "spiffe://c/worker/n1?x", "https://c/"} {
		u, err := url.Parse(text)
		if err != nil {
			f.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{u}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		id, err := auth.FromCertificate(c)
		if err != nil {
			return
		}
		if auth.ValidName(id.Name) != nil || id.Role == authv1.Role_ROLE_UNSPECIFIED || strings.ContainsAny(id.String(), "\n\x1b/") {
			t.Errorf("%v is read as %q", c.URIs, id)
		}
	})
}

// FuzzName: with a name that is valid goes an identity that is read back as it was.
func FuzzName(f *testing.F) {
	for _, s := range []string{"ada", "node-1", "a.b_c", "..", ".", "", "a/b", "a%2fb", "ada\n", "аda", strings.Repeat("a", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if auth.ValidName(name) != nil {
			return
		}
		for _, role := range []authv1.Role{authv1.Role_WORKER, authv1.Role_VIEWER, authv1.Role_ADMIN} {
			want := auth.Identity{Domain: "d", Role: role, Name: name}
			u, err := url.Parse(want.URI().String())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := auth.ParseURI(u); err != nil || got != want {
				t.Errorf("%q is read back as %v, %v", u, got, err)
			}
		}
	})
}
