package auth_test

import (
	"crypto/x509"
	"net/url"
	"testing"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

func TestIdentitiesSurviveTheirURI(t *testing.T) {
	for _, id := range []auth.Identity{
		{Domain: "c1", Role: authv1.Role_WORKER, Name: "0hq3"},
		{Domain: "c1", Role: authv1.Role_DISPATCHERD, Name: "dispatcherd"},
		{Domain: "c1", Role: authv1.Role_VIEWER, Name: "prometheus"},
		{Domain: "c1.example", Role: authv1.Role_ADMIN, Name: "ada.l-1_2"},
	} {
		got, err := auth.ParseURI(id.URI())
		if err != nil || got != id {
			t.Errorf("ParseURI(%s) = %v, %v", id.URI(), got, err)
		}
	}
}

func TestWhatIsNoIdentity(t *testing.T) {
	for _, s := range []string{
		"spiffe://c1/worker/", "spiffe://c1/worker", "spiffe:///worker/n", "spiffe://c1/worker/a/b", "spiffe://c1/worker/a?x=1",
		"spiffe://c1/worker/a#x", "spiffe://u@c1/worker/a", "spiffe://c1:1/worker/a", "spiffe://c1/worker/%61", "spiffe://c1/worker/..",
		"spiffe://c1/manager/workerd", "spiffe://c1/manager/", "spiffe://c1/user/worker/x", "spiffe://c1/user/VIEWER/x", "spiffe://c1/user/admin/",
		"spiffe://c1/user/role_unspecified/x", "https://c1/worker/a", "spiffe://c1//worker/a", "spiffe:worker/a",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := auth.ParseURI(u); err == nil {
			t.Errorf("ParseURI(%s) = %v", s, id)
		}
		if id, err := auth.FromCertificate(&x509.Certificate{URIs: []*url.URL{u}}); err == nil {
			t.Errorf("a certificate with %s is that of %v", s, id)
		}
	}
	one := auth.Identity{Domain: "c", Role: authv1.Role_WORKER, Name: "a"}.URI()
	two := auth.Identity{Domain: "c", Role: authv1.Role_ADMIN, Name: "a"}.URI()
	if id, err := auth.FromCertificate(&x509.Certificate{URIs: []*url.URL{one, two}}); err == nil {
		t.Errorf("a certificate with two identities is that of %v", id)
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("spiffe://c1/worker/a")
	f.Add("spiffe://c1/user/admin/ada")
	f.Add("spiffe://c1/manager/apid")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := auth.FromCertificate(&x509.Certificate{URIs: []*url.URL{u}})
		if err == nil && id.URI().String() != u.String() {
			t.Errorf("%q is read as %q", u, id.URI())
		}
	})
}
