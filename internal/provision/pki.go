package provision

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"
)

const (
	// rootLifetime is that of Consul's authority.
	rootLifetime = 20 * 365 * 24 * time.Hour
	// serverLifetime is that of a server's certificate, and renewBefore how long
	// before its end another one is made.
	serverLifetime = 5 * 365 * 24 * time.Hour
	renewBefore    = 365 * 24 * time.Hour
	// backdate covers clocks that are behind.
	backdate = time.Hour
)

// authority signs for Consul's servers only.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         string
}

// authority returns that of Consul, and makes it first if there is none.
func (c *Cluster) authority(secrets *folder) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(c.Path(Secrets, ConsulCA), c.Path(Secrets, consulCAKey))
	if errors.Is(err, fs.ErrNotExist) {
		certificate := &x509.Certificate{
			Subject: pkix.Name{Organization: []string{"Muster"}, CommonName: "Consul of Muster"},
			IsCA:    true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		cert, key, err := (*authority)(nil).sign(certificate, rootLifetime)
		if err != nil {
			return nil, err
		}
		// The key first: one without a certificate is replaced, the other way round
		// nothing could be signed any more.
		if err := secrets.write(map[string]string{consulCAKey: key}); err != nil {
			return nil, err
		}
		if err := secrets.write(map[string]string{ConsulCA: cert}); err != nil {
			return nil, err
		}
		return c.authority(secrets)
	}
	if err != nil {
		return nil, fmt.Errorf("load Consul's authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("load Consul's authority: its key is not for ECDSA")
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))
	return &authority{pair.Leaf, key, text}, nil
}

// sign makes a key and signs a certificate for it; a nil one signs itself.
func (a *authority) sign(c *x509.Certificate, lifetime time.Duration) (certificate, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	c.NotBefore, c.NotAfter = now.Add(-backdate), now.Add(lifetime)
	if c.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return "", "", fmt.Errorf("draw serial number: %w", err)
	}
	parent, signer := c, k
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), signer)
	if err != nil {
		return "", "", fmt.Errorf("sign certificate of %s: %w", c.Subject.CommonName, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", fmt.Errorf("encode key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), nil
}

// serverFiles returns a server's certificate and key; nil if those that it has
// are good for long yet.
func (a *authority) serverFiles(path func(file string) string, name, datacenter string) (map[string]string, error) {
	if good(path(serverCert), path(serverKey), renewBefore) {
		return nil, nil
	}
	// The first name is what servers insist on among themselves.
	names := []string{"server." + datacenter + ".consul", name, "localhost"}
	cert, key, err := a.sign(&x509.Certificate{
		Subject:  pkix.Name{Organization: []string{"Muster"}, CommonName: names[0]},
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, serverLifetime)
	if err != nil {
		return nil, err
	}
	return map[string]string{serverCert: cert, serverKey: key}, nil
}

// good tells whether there is a certificate with its key that lasts for long yet.
func good(cert, key string, long time.Duration) bool {
	if _, err := os.Stat(cert); err != nil {
		return false
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	return err == nil && time.Until(pair.Leaf.NotAfter) > long
}
