package auth

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// TestCertificatesEndOnOpenConnections calls over a connection that was made while
// its certificate was good.
func TestCertificatesEndOnOpenConnections(t *testing.T) {
	const method = "/s/Deed"
	for name, tt := range map[string]struct {
		id   Identity
		want codes.Code
	}{
		"an administrator": {Identity{Domain: "d", Role: authv1.Role_ADMIN, Name: "ada"}, codes.Unauthenticated},
		"a viewer":         {Identity{Domain: "d", Role: authv1.Role_VIEWER, Name: "vera"}, codes.Unauthenticated},
		// They have renewed theirs, and connections are not cut for that.
		"a daemon": {Identity{Domain: "d", Role: authv1.Role_APID, Name: "apid"}, codes.OK},
		"a worker": {Identity{Domain: "d", Role: authv1.Role_WORKER, Name: "n1"}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := New(func() string { return "d" }, zaptest.NewLogger(t), prometheus.NewRegistry())
				if err != nil {
					t.Fatal(err)
				}
				g.rules.Store(&map[string]*authv1.Rule{method: {Roles: []authv1.Role{tt.id.Role}}})
				c := &x509.Certificate{URIs: []*url.URL{tt.id.URI()}, NotAfter: time.Now().Add(time.Hour), SerialNumber: big.NewInt(1)}
				r := httptest.NewRequest("GET", "/", nil)
				r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}}
				if _, err := g.AdmitREST(r, method); err != nil {
					t.Errorf("while it is good: %v", err)
				}
				time.Sleep(time.Hour + time.Second)
				if _, err := g.AdmitREST(r, method); status.Code(err) != tt.want {
					t.Errorf("once it has ended: %v, want %v", err, tt.want)
				}
			})
		})
	}
}
