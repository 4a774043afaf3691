package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Credentials are those of a daemon's servers and of its clients.
type Credentials struct {
	Server credentials.TransportCredentials
	Client credentials.TransportCredentials
	// HTTP is the same for a server of HTTP; nil: in the clear.
	HTTP *tls.Config
}

// Plain are credentials for connections in the clear.
func Plain() Credentials {
	return Credentials{Server: insecure.NewCredentials(), Client: insecure.NewCredentials()}
}

var errPartialTLS = errors.New("--tls-cert-file, --tls-key-file and --tls-ca-file go together: TLS is mutual")

// Credentials loads what the settings name: mutual TLS 1.3, or none.
func (s *TLSSettings) Credentials() (Credentials, error) {
	switch n := count(s.CertFile, s.KeyFile, s.CAFile); {
	case *s == TLSSettings{}:
		return Plain(), nil
	case n != 3:
		// Whoever names a part of it does not want to speak in the clear.
		return Credentials{}, errPartialTLS
	}
	cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		return Credentials{}, fmt.Errorf("load certificate from --tls-cert-file and --tls-key-file: %w", err)
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return Credentials{}, fmt.Errorf("--tls-ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return Credentials{}, fmt.Errorf("--tls-ca-file: %s holds no PEM certificate", s.CAFile)
	}
	base := tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	server, client := base.Clone(), base.Clone()
	server.ClientCAs, server.ClientAuth = pool, tls.RequireAndVerifyClientCert
	client.RootCAs, client.ServerName = pool, s.ServerName
	http := server.Clone()
	http.NextProtos = []string{"http/1.1"}
	return Credentials{Server: credentials.NewTLS(server), Client: credentials.NewTLS(client), HTTP: http}, nil
}
