package process

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// This file is the plugin's side of HashiCorp's go-plugin, the part of it that a
// worker uses: one line on standard output, gRPC over mutual TLS, and a call that
// ends the process. The library itself would bring a plugin nine more modules.
const (
	// coreVersion is that of go-plugin's own protocol.
	coreVersion = 1
	// certificateKey and socketDirKey name the worker's certificate and where
	// it wants the socket.
	certificateKey = "PLUGIN_CLIENT_CERT"
	socketDirKey   = "PLUGIN_UNIX_SOCKET_DIR"
	// hostName is whom the certificate is for.
	hostName = "localhost"
)

// serve answers the worker until the worker wants the process to end.
func (p *Plugin) serve() (err error) {
	options := []grpc.ServerOption{grpc.UnaryInterceptor(p.recoverUnary), grpc.StreamInterceptor(p.recoverStream)}
	if p.MaxRequest > 0 {
		options = append(options, grpc.MaxRecvMsgSize(p.MaxRequest))
	}
	var ours string
	if theirs := os.Getenv(certificateKey); theirs != "" {
		config, der, err := mutualTLS(theirs)
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
		ours = base64.RawStdEncoding.EncodeToString(der)
	}
	listener, remove, err := listen()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	server := grpc.NewServer(options...)
	p.Register(server)
	checks := health.NewServer()
	checks.SetServingStatus("plugin", healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(server, checks)
	asked := make(chan struct{}, 1)
	server.RegisterService(controller(func() {
		select {
		case asked <- struct{}{}:
		default:
		}
	}), nil)

	address := listener.Addr()
	if _, err := fmt.Printf("%d|%d|%s|%s|grpc|%s\n", coreVersion, wire.ProtocolVersion, address.Network(), address, ours); err != nil {
		return fmt.Errorf("tell the worker the address: %w", err)
	}
	// Standard output is no longer read. What is printed must be seen.
	os.Stdout = os.Stderr
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-asked:
		server.Stop()
		return <-served
	}
}

// listen opens the socket, where the worker says, and returns what removes it.
func listen() (net.Listener, func() error, error) {
	if runtime.GOOS == "windows" {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		return listener, func() error { return nil }, err
	}
	// A short name: the path of a socket has room for some 100 bytes.
	dir, err := os.MkdirTemp(os.Getenv(socketDirKey), "x")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	remove := func() error { return os.RemoveAll(dir) }
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return listener, remove, nil
}

// mutualTLS makes a key for this process alone, and trusts only the worker
// whose certificate it is given. It returns its own certificate for the worker.
func mutualTLS(worker string) (*tls.Config, []byte, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(worker)) {
		return nil, nil, fmt.Errorf("%s holds no certificate", certificateKey)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: hostName},
		DNSNames:              []string{hostName},
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().AddDate(30, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		MinVersion:   tls.VersionTLS13,
	}, der, nil
}

// controller is the service by which a worker ends the process.
func controller(end func()) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "plugin.GRPCController",
		Methods: []grpc.MethodDesc{{
			MethodName: "Shutdown",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				empty := &emptypb.Empty{}
				if err := decode(empty); err != nil {
					return nil, err
				}
				end()
				return empty, nil
			},
		}},
	}
}
