package cli_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// signer is an apid that signs whatever comes, and keeps what was asked for.
type signer struct {
	musterv1.UnimplementedControlServiceServer
	asked *musterv1.CreateCertificateRequest
}

func (s *signer) CreateCertificate(_ context.Context, req *musterv1.CreateCertificateRequest) (*musterv1.CreateCertificateResponse, error) {
	s.asked = req
	block, _ := pem.Decode([]byte(req.Request))
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, r.PublicKey, key)
	if err != nil {
		return nil, err
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return &musterv1.CreateCertificateResponse{Certificate: text, Authorities: text, ExpiresAt: timestamppb.New(c.NotAfter)}, nil
}

// TestTheKeyStays looks at what is sent for a certificate: its key is not in it.
func TestTheKeyStays(t *testing.T) {
	t.Setenv("MUSTER_CONTEXTS_FILE", filepath.Join(t.TempDir(), "contexts.json"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server := &signer{}, grpc.NewServer()
	musterv1.RegisterControlServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	(&shell{t, l.Addr().String()}).must("certificate", "create", "ada", "--role", "operator", "--out", dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ada.pem"), filepath.Join(dir, "ada-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	sent, err := proto.Marshal(s.asked)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the key is a %T", pair.PrivateKey)
	}
	secret, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode([]byte(s.asked.Request))
	if block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		t.Errorf("more is sent than a request: %s, and %d bytes", block.Type, len(rest))
	}
	if bytes.Contains(block.Bytes, secret) || bytes.Contains(sent, secret) || bytes.Contains(sent, []byte("PRIVATE")) {
		t.Error("the key is in what is sent")
	}
	if s.asked.Name != "ada" || s.asked.Role != "operator" || s.asked.Lifetime != nil {
		t.Errorf("asked for %v", s.asked)
	}
}

// TestNoCertificateIsLost: that of a user called ca would be in the file of the
// authorities.
func TestNoCertificateIsLost(t *testing.T) {
	t.Setenv("MUSTER_CONTEXTS_FILE", filepath.Join(t.TempDir(), "contexts.json"))
	for _, name := range []string{"ca", "CA"} {
		if _, errs, code := (&shell{t, "127.0.0.1:1"}).run("", "certificate", "create", name, "--out", t.TempDir()); code != 2 || !strings.Contains(errs, "choose another name") {
			t.Errorf("%s: %d, %s", name, code, errs)
		}
	}
}
