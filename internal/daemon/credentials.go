package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/mtls"
)

// Credentials are the credentials of a daemon's servers and clients.
type Credentials struct {
	// Client is for connections to manager daemons.
	Client credentials.TransportCredentials
	source *mtls.Source
}

// Plain returns credentials for connections without TLS.
func Plain() Credentials { return Credentials{Client: insecure.NewCredentials()} }

// Secured returns credentials for mutual TLS with the certificate of a source.
func Secured(source *mtls.Source) Credentials {
	return Credentials{Client: &kept{credentials.NewTLS(source.Client(mtls.Managers()...)), source}, source: source}
}

// Secure reports whether these are credentials for TLS.
func (c Credentials) Secure() bool { return c.source != nil }

// Domain returns the trust domain of secure credentials.
func (c Credentials) Domain() string { return c.source.Domain() }

// ClientOf returns credentials for connections to daemons of one kind only.
func (c Credentials) ClientOf(kind authv1.Role) credentials.TransportCredentials {
	if !c.Secure() {
		return c.Client
	}
	return &kept{credentials.NewTLS(c.source.Client(kind)), c.source}
}

// Server returns the credentials of a gRPC server. An unauthenticated server also accepts
// peers without a certificate, and its guard decides what they may call.
func (c Credentials) Server(unauthenticated bool) credentials.TransportCredentials {
	if !c.Secure() {
		return insecure.NewCredentials()
	}
	return &kept{credentials.NewTLS(c.source.Server(unauthenticated)), c.source}
}

// HTTP returns the TLS settings of an HTTP server, which always accepts peers without a
// certificate. It returns nil for a server without TLS.
func (c Credentials) HTTP() *tls.Config {
	if !c.Secure() {
		return nil
	}
	return c.source.Server(true, "http/1.1")
}

// Certifies reports whether the daemon's own certificate names a host.
func (c Credentials) Certifies(host string) bool {
	return c.Secure() && c.source.Get().Certificate.Leaf.VerifyHostname(host) == nil
}

// Keep counts a connection of that server whose handshake has finished, and fails if
// its peer has too many. It closes the connection when the root that signed the peer's
// certificate is no longer trusted, unless forget is called before.
func (c Credentials) Keep(conn io.Closer, state tls.ConnectionState) (forget func(), err error) {
	if err := handshakeFinished(conn, state); err != nil {
		return nil, err
	}
	return c.source.Keep(conn, state), nil
}

var errPartialTLS = errors.New("--tls-cert-file, --tls-key-file and --tls-ca-file go together: TLS is mutual")

// Credentials loads the files that the settings name: mutual TLS 1.3, or none.
func (s *TLSSettings) Credentials() (Credentials, error) {
	switch n := count(s.CertFile, s.KeyFile, s.CAFile); n {
	case 0:
		return Plain(), nil
	case 3:
	default:
		// If one of these settings is given, TLS is wanted.
		return Credentials{}, errPartialTLS
	}
	m, err := s.load()
	if err != nil {
		return Credentials{}, err
	}
	return Secured(mtls.NewSource(m)), nil
}

// load reads the files.
func (s *TLSSettings) load() (*mtls.Material, error) {
	var contents [3][]byte
	for i, f := range []struct{ flag, path string }{{"tls-cert-file", s.CertFile}, {"tls-key-file", s.KeyFile}, {"tls-ca-file", s.CAFile}} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", f.flag, err)
		}
		contents[i] = b
	}
	m, err := mtls.NewMaterial(contents[0], contents[1], contents[2])
	if err != nil {
		return nil, fmt.Errorf("--tls-cert-file, --tls-key-file, --tls-ca-file: %w", err)
	}
	return m, nil
}

// reloadInterval is how often the files are checked.
const reloadInterval = 10 * time.Second

// Reload reads the files again until ctx ends, because an authority from outside renews
// certificates there. It ignores files that do not match, such as while one of them is
// still to be written.
func (s *TLSSettings) Reload(ctx context.Context, creds Credentials, log *zap.Logger) error {
	if !creds.Secure() {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(reloadInterval)
	defer tick.Stop()
	complained := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		had := creds.source.Get()
		m, err := s.load()
		if err == nil && m.Identity != had.Identity {
			err = fmt.Errorf("the new certificate is that of %s in trust domain %q, and this is %s in %q", m.Identity, m.Identity.Domain, had.Identity, had.Identity.Domain)
		}
		if err != nil {
			// Log each fault once.
			if text := err.Error(); text != complained {
				complained = text
				log.Warn("certificate files are invalid; keeping the former ones", zap.Error(err))
			}
			continue
		}
		complained = ""
		if m.Certificate.Leaf.Equal(had.Certificate.Leaf) && m.Roots.Equal(had.Roots) {
			continue
		}
		ending := creds.source.Set(m)
		log.Info("certificate reloaded", zap.Int("connections_that_end", ending), zap.String("serial", m.Certificate.Leaf.SerialNumber.Text(16)), zap.Time("ends", m.Certificate.Leaf.NotAfter))
	}
}
