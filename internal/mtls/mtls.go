// Package mtls makes the TLS configurations of daemons, workers and users out of
// what they prove themselves with. That may change while connections are open
// and servers run: each handshake uses what is newest.
//
// TLS is 1.3 and mutual. Servers are known by the identity in their certificate
// and not by host name: the client says what kind of daemon it wants, wherever that
// runs.
package mtls

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"sync/atomic"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

// Material is what one proves oneself with, and judges others by.
type Material struct {
	// Certificate has its leaf parsed. A user who comes with a token has none.
	Certificate *tls.Certificate
	Identity    auth.Identity
	// Roots are the authorities that others must be signed by.
	Roots *x509.CertPool
	// Root is the digest, SHA-256 in hexadecimal, of the one of them that signed the
	// certificate itself. Empty if that is none: there is another in between.
	Root string
}

// NewMaterial checks a pair of certificate and key, in PEM, and authorities.
func NewMaterial(certificate, key, authorities []byte) (*Material, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("pair of certificate and key: %w", err)
	}
	id, err := auth.FromCertificate(pair.Leaf)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		return nil, errNoAuthority
	}
	return &Material{Certificate: &pair, Identity: id, Roots: roots, Root: rootOf(pair.Leaf, authorities)}, nil
}

func rootOf(leaf *x509.Certificate, authorities []byte) string {
	for block, rest := pem.Decode(authorities); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err == nil && leaf.CheckSignatureFrom(c) == nil {
			sum := sha256.Sum256(c.Raw)
			return hex.EncodeToString(sum[:])
		}
	}
	return ""
}

// Source holds the newest material, and knows the connections that were made with
// what it holds.
type Source struct {
	newest atomic.Pointer[Material]
	kept   connections
}

// NewSource returns a source that holds m.
func NewSource(m *Material) *Source {
	s := &Source{}
	s.Set(m)
	return s
}

// Set replaces the material, for handshakes from now on. Connections whose peers it
// does not trust any more end soon; it returns how many they are.
func (s *Source) Set(m *Material) (ending int) {
	before := s.newest.Swap(m)
	if before == nil || before.Roots.Equal(m.Roots) {
		return 0
	}
	return s.kept.judge(m.Roots)
}

// Get returns the newest material.
func (s *Source) Get() *Material { return s.newest.Load() }

// Domain is the trust domain, which peers must be of.
func (s *Source) Domain() string { return s.Get().Identity.Domain }

// Server returns the configuration of a server. If unauthenticated is
// set, it also accepts connections without a certificate and leaves the decision to
// the guard; it still refuses a certificate that is not trusted.
func (s *Source) Server(unauthenticated bool, protocols ...string) *tls.Config {
	clients := tls.RequireAndVerifyClientCert
	if unauthenticated {
		clients = tls.VerifyClientCertIfGiven
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, ClientAuth: clients,
		// A session that is resumed would skip what has changed since.
		SessionTicketsDisabled: true,
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.Get()
		c := base.Clone()
		c.GetConfigForClient = nil
		c.Certificates, c.ClientCAs = []tls.Certificate{*m.Certificate}, m.Roots
		return c, nil
	}
	return base
}

// Client returns the configuration of a client that wants to speak to a daemon
// of one of the given kinds, of its own trust domain.
func (s *Source) Client(kinds ...authv1.Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.Get().Certificate, nil
		},
		// VerifyConnection does what this leaves out, by identity in place of name.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			m := s.Get()
			return verify(c, m.Roots, func(id auth.Identity) error {
				if id.Domain != m.Identity.Domain {
					return fmt.Errorf("%s is of trust domain %q, and this is %q", id, id.Domain, m.Identity.Domain)
				}
				if !slices.Contains(kinds, id.Role) {
					return fmt.Errorf("%s answers, where another kind of daemon was expected", id)
				}
				return nil
			})
		},
	}
}

// Managers are all kinds of manager daemons, for Client.
func Managers() []authv1.Role {
	var all []authv1.Role
	for _, r := range auth.Managers() {
		all = append(all, r)
	}
	return all
}

// verify checks the chain of a server's certificate, and whose it is.
func verify(c tls.ConnectionState, roots *x509.CertPool, whose func(auth.Identity) error) error {
	if len(c.PeerCertificates) == 0 {
		return errNoCertificate
	}
	leaf := c.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, cert := range c.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("verify server's certificate: %w", err)
	}
	id, err := auth.FromCertificate(leaf)
	if err != nil {
		return err
	}
	return whose(id)
}
