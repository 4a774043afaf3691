package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/musterhq/muster/internal/mtls"
)

// tlsFlags say how a user's connection is secured.
type tlsFlags struct{ certFile, keyFile, caFile, serverName string }

func (f *tlsFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.certFile, "tls-cert-file", os.Getenv("MUSTER_TLS_CERT_FILE"), "PEM file of the client certificate (environment: MUSTER_TLS_CERT_FILE, and so on)")
	fs.StringVar(&f.keyFile, "tls-key-file", os.Getenv("MUSTER_TLS_KEY_FILE"), "PEM file of the client key")
	fs.StringVar(&f.caFile, "tls-ca-file", os.Getenv("MUSTER_TLS_CA_FILE"), "PEM file with the authorities that sign the server's certificate")
	fs.StringVar(&f.serverName, "tls-server-name", os.Getenv("MUSTER_TLS_SERVER_NAME"), "name to expect in the server's certificate, for a proxy in front of apid")
}

// credentials returns those of connections to a cluster. Flags go before what a
// context says; one with a token has TLS in any case.
func (f *tlsFlags) credentials(t *target) (credentials.TransportCredentials, error) {
	if *f == (tlsFlags{}) && t.CA == "" && !t.known {
		return insecure.NewCredentials(), nil
	}
	if (f.certFile == "") != (f.keyFile == "") || f.caFile == "" && !t.known {
		return nil, errors.New("TLS needs --tls-ca-file; and --tls-cert-file goes together with --tls-key-file")
	}
	authorities := []byte(t.CA)
	if f.caFile != "" {
		var err error
		if authorities, err = os.ReadFile(f.caFile); err != nil {
			return nil, fmt.Errorf("--tls-ca-file: %w", err)
		}
	}
	pair, err := f.pair(t)
	if err != nil {
		return nil, err
	}
	host := f.serverName
	if host == "" {
		// Several addresses are those of apids, which are known by identity.
		first, _, _ := strings.Cut(t.Address, ",")
		if host, _, err = net.SplitHostPort(first); err != nil {
			return nil, fmt.Errorf("host of --address: %w", err)
		}
	}
	c, err := mtls.User(pair, authorities, host)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca-file: %w", err)
	}
	return credentials.NewTLS(c), nil
}

// pair returns the certificate that a user comes with; nil if none.
func (f *tlsFlags) pair(t *target) (*tls.Certificate, error) {
	switch {
	case f.certFile != "":
		p, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
		if err != nil {
			return nil, fmt.Errorf("load certificate from --tls-cert-file and --tls-key-file: %w", err)
		}
		return &p, nil
	case t.Certificate != "":
		p, err := tls.X509KeyPair([]byte(t.Certificate), []byte(t.Key))
		if err != nil {
			return nil, fmt.Errorf("certificate of the context: %w", err)
		}
		return &p, nil
	}
	return nil, nil
}
