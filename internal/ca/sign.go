package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/musterhq/muster/internal/auth"
)

const (
	// rootLifetime is the lifetime of an authority's own certificate.
	rootLifetime = 20 * 365 * 24 * time.Hour
	// backdate allows for clocks that are behind.
	backdate = time.Hour
)

// serial returns a serial number: 127 random bits.
func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}

// rootTemplate returns what an authority's certificate says, except how many authorities
// may be below it.
func rootTemplate(domain string, now time.Time) (*x509.Certificate, error) {
	n, err := serial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{Organization: []string{"Muster"}, CommonName: "Muster cluster " + domain},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// Certificates of another trust domain, or for another use, are not valid. DNS
		// names are not constrained, because an administrator may give apid a new one at
		// any time.
		PermittedURIDomains: []string{domain},
		ExtKeyUsage:         []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                []*url.URL{{Scheme: "spiffe", Host: domain}},
	}, nil
}

// signer is an authority's certificate and key.
type signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// order says what to sign.
type order struct {
	identity auth.Identity
	public   crypto.PublicKey
	// hosts are the hosts of the certificate, in addition to OwnHost.
	hosts    []string
	lifetime time.Duration
}

// sign issues a certificate.
func (s *signer) sign(o order, now time.Time) (*x509.Certificate, error) {
	n, err := serial()
	if err != nil {
		return nil, err
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if !auth.IsPerson(o.identity.Role) {
		// A worker serves its metrics over TLS.
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	c := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{Organization: []string{o.identity.Domain}, OrganizationalUnit: []string{auth.RoleName(o.identity.Role)}, CommonName: o.identity.Name},
		// A certificate with a lifetime below an hour is backdated by less.
		NotBefore: now.Add(-min(backdate, o.lifetime/10)), NotAfter: now.Add(o.lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true,
		URIs: []*url.URL{o.identity.URI()},
	}
	if own := OwnHost(o.identity.Role); own != "" {
		c.DNSNames = []string{own}
	}
	for _, h := range o.hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	if c.NotAfter.After(s.certificate.NotAfter) {
		c.NotAfter = s.certificate.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, c, s.certificate, o.public, s.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", o.identity, err)
	}
	return x509.ParseCertificate(der)
}

var errRequest = errors.New("not a certificate request with an ECDSA P-256 key, in PEM, signed with that key")

// Request is a certificate request whose signature was verified. Only its key and its hosts
// are used. The hosts are unchecked.
type Request struct {
	public *ecdsa.PublicKey
	hosts  []string
}

// CheckHosts returns an error for the first host that no certificate can name.
func (r *Request) CheckHosts() error {
	for _, h := range r.hosts {
		if err := CheckHost(h); err != nil {
			return err
		}
	}
	return nil
}

// ParseRequest reads a request from outside.
func ParseRequest(text []byte) (*Request, error) {
	if len(text) > 16<<10 {
		return nil, errRequest
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errRequest
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.CheckSignature() != nil {
		return nil, errRequest
	}
	public, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() || len(r.DNSNames)+len(r.IPAddresses) > maxHosts {
		return nil, errRequest
	}
	hosts := slices.Clone(r.DNSNames)
	for _, ip := range r.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return &Request{public, hosts}, nil
}

// KeyDigest returns the SHA-256 of the request's key.
func (r *Request) KeyDigest() ([]byte, error) { return KeyDigest(r.public) }

// KeyDigest returns the SHA-256 of a public key, encoded as in a certificate.
func KeyDigest(public any) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// NewRequest makes a key, in PEM, and a certificate request for it.
func NewRequest() (key, request []byte, err error) {
	k, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	if key, err = keyPEM(k); err != nil {
		return nil, nil, err
	}
	request, err = newRequest(k, nil)
	return key, request, err
}

func newKey() (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return k, nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newRequest makes a certificate request for a key.
func newRequest(key *ecdsa.PrivateKey, hosts []string) ([]byte, error) {
	r := &x509.CertificateRequest{}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			r.IPAddresses = append(r.IPAddresses, ip)
		} else if h != "" {
			r.DNSNames = append(r.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func certificatePEM(der ...[]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}
