package sdk_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// hosted is the test program as an executor, started as a worker starts it.
type hosted struct {
	cmd     *exec.Cmd
	output  io.Closer
	line    []string
	conn    *grpc.ClientConn
	sockets string
}

// host starts the test program as an executor and connects to it.
func host(t *testing.T, env ...string) *hosted {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	h := &hosted{cmd: exec.CommandContext(t.Context(), self)}
	// A socket's path must be short, and the test's own directory may not be.
	if h.sockets, err = os.MkdirTemp("", "sdk"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(h.sockets) })
	h.cmd.Env = append(append(os.Environ(),
		wire.CookieKey+"="+wire.CookieValue, "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR="+h.sockets,
		"PLUGIN_CLIENT_CERT="+string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	), env...)
	h.cmd.Stderr = t.Output()
	output, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.output = output
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the executor's first line = %q, %v", line, err)
	}
	h.line = strings.Split(strings.TrimSpace(line), "|")
	if len(h.line) != 6 {
		t.Fatalf("the executor's first line = %q, want six fields", line)
	}
	raw, err := base64.RawStdEncoding.DecodeString(h.line[5])
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(theirs)
	h.conn, err = grpc.NewClient(h.line[2]+":"+h.line[3], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ServerName: "localhost", MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.conn.Close() })
	return h
}

// ended waits for the executor's process.
func (h *hosted) ended(t *testing.T, within time.Duration) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- h.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(within):
		_ = h.cmd.Process.Kill()
		t.Errorf("the executor's process has not ended within %s", within)
		return <-done
	}
}

// The handshake is what go-plugin's is, and a call ends the process, which leaves
// no socket.
func TestServe(t *testing.T) {
	t.Parallel()
	h := host(t)
	if got := strings.Join([]string{h.line[0], h.line[1], h.line[2], h.line[4]}, "|"); got != "1|1|unix|grpc" {
		t.Errorf("the first line says %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Its answer may be cut off by what it asks for.
	_ = h.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{})
	if err := h.ended(t, time.Minute); err != nil {
		t.Errorf("the executor ended with %v", err)
	}
	if left, err := os.ReadDir(h.sockets); err != nil || len(left) > 0 {
		t.Errorf("left where the socket was: %v, %v", left, err)
	}
}

// A client without the worker's key is not answered.
func TestServeRefusesStrangers(t *testing.T) {
	t.Parallel()
	h := host(t)
	conn, err := tls.Dial(h.line[2], h.line[3], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		// With TLS 1.3 the refusal comes with the first answer.
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil {
		t.Error("a stranger without a certificate is answered")
	}
}

// A process whose worker has died ends.
func TestServeEndsWithItsWorker(t *testing.T) {
	t.Parallel()
	h := host(t)
	if err := h.output.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.ended(t, time.Minute); err != nil {
		t.Errorf("the executor ended with %v", err)
	}
}
