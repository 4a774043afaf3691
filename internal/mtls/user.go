package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

var (
	errNoAuthority   = errors.New("no PEM certificate of an authority found")
	errNoCertificate = errors.New("the server shows no certificate")
	errOtherServer   = errors.New("the server is not an apid")
)

// User returns the configuration of a user's connection to apid. Pair may be nil
// for one who comes with a token.
//
// Authorities are the cluster's own, in PEM, which vouch for apid wherever it
// runs; or, if there are none, those of the machine, which vouch for a host
// name: that of something in front of apid.
func User(pair *tls.Certificate, authorities []byte, host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}
	if pair != nil {
		c.Certificates = []tls.Certificate{*pair}
	}
	if len(authorities) == 0 {
		return c, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		return nil, errNoAuthority
	}
	// VerifyConnection does what this leaves out.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state, roots, func(id auth.Identity) error {
			if id.Role != authv1.Role_APID {
				return fmt.Errorf("%w: it is %s", errOtherServer, id)
			}
			return nil
		})
		if err == nil || host == "" || len(state.PeerCertificates) == 0 || errors.Is(err, errOtherServer) {
			return err
		}
		// What stands in front of apid has no identity, but a name.
		leaf, between := state.PeerCertificates[0], x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			between.AddCert(cert)
		}
		if _, byName := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host}); byName != nil || len(leaf.URIs) > 0 {
			return err
		}
		return nil
	}
	return c, nil
}
