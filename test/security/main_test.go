// Package security_test attacks a cluster of real processes that is closed to
// strangers. Each attack must be refused, logged with who and what, and counted.
package security_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/mtls"
	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/rig"
)

// built is the directory with the programs. TestMain sets it before any test runs.
var built string

func TestMain(m *testing.M) { os.Exit(rig.Tests(m, "security", &built)) }

// closed is a cluster with access control: apid and dispatcherd, which
// are all that strangers and workers reach.
type closed struct {
	t                        *testing.T
	dir                      string
	api, rest, dispatch, ops string
	// second is where a second apid would be.
	second string
	ca     []byte
	admin  string
	// store and apid are settings of all daemons, and of every apid.
	store, apid []string
	// first is the process of apid.
	first *process.Process
}

// start starts it, with further settings of apid.
func start(t *testing.T, apid ...string) *closed {
	t.Helper()
	consul := consultest.Start(t)
	free := freeAddresses(t, 6)
	c := &closed{t: t, dir: t.TempDir(), api: free[0], rest: free[1], dispatch: free[2], ops: free[3], second: free[5]}
	key := filepath.Join(c.dir, "cluster.key")
	store := []string{"--consul-address", consul.Address}
	host, _, err := net.SplitHostPort(c.rest)
	if err != nil {
		t.Fatal(err)
	}
	c.store, c.apid = store, append(append([]string{}, store...), append(apid, "--cluster-key-file", key, "--certificate-host", host)...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 2 {
		// The second time changes nothing.
		out, err := exec.CommandContext(ctx, filepath.Join(built, "muster"),
			append([]string{"init"}, append(store, "--cluster-key-file", key, "--out", c.dir)...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("init: %v\n%s", err, out)
		}
	}
	c.ca, c.admin = c.file("ca.pem"), strings.TrimSpace(string(c.file("admin.token")))
	c.first = c.daemon("apid", append(c.apid, "--listen", c.api, "--rest-listen", c.rest, "--ops-listen", c.ops)...)
	c.manager("dispatcherd", c.dispatch, free[4], "--cluster-key-file", key)
	c.eventually("apid and dispatcherd serve", func() bool {
		conn, err := net.DialTimeout("tcp", c.dispatch, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		_, err = musterv1.NewControlServiceClient(c.dial(c.api, nil)).ListNodes(c.with(c.admin), &musterv1.ListNodesRequest{})
		return err == nil
	})
	return c
}

// freeAddresses returns different addresses without a listener, which no other
// process takes meanwhile.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	free, err := network.FreeAddresses(network.Loopback(), n)
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// callTimeout bounds one call, on a machine that is busy.
const callTimeout = time.Minute

func (c *closed) file(name string) []byte {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// manager runs a manager daemon that joins, with further settings.
func (c *closed) manager(name, listen, ops string, further ...string) {
	c.t.Helper()
	c.daemon(name, append(append(further, c.store...), "--join", c.api+","+c.second, "--join-token-file", filepath.Join(c.dir, "manager.token"),
		"--identity-dir", filepath.Join(c.dir, name), "--listen", listen, "--ops-listen", ops)...)
}

// daemon runs one until the test ends. Name may say which of several it is:
// "apid-2".
func (c *closed) daemon(name string, args ...string) *process.Process {
	c.t.Helper()
	p := process.StartFor(c.t, process.Config{
		Name: name, Log: filepath.Join(c.dir, name+".log"),
		Command: append([]string{filepath.Join(built, "muster"), strings.TrimSuffix(name, "-2"), "--log-format", "json"}, args...),
	})
	c.t.Cleanup(func() {
		killed := p.Ended() && p.ExitCode() == -1
		if err := p.Stop(); err != nil {
			c.t.Error(err)
		}
		// A test may have killed it.
		if code := p.ExitCode(); code != 0 && !killed {
			c.t.Errorf("%s ended with code %d", name, code)
		}
	})
	return p
}

func (c *closed) eventually(what string, holds func() bool) {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			c.t.Fatalf("it does not come to be that %s", what)
		}
	}
}

// with is a context with a token, for one call.
func (c *closed) with(token string) context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
	c.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// dial connects as the holder of a certificate, or without one, and takes whatever
// daemon answers.
func (c *closed) dial(address string, pair *tls.Certificate) grpc.ClientConnInterface {
	c.t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if pair != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return c.connect(address, credentials.NewTLS(config))
}

func (c *closed) connect(address string, creds credentials.TransportCredentials) grpc.ClientConnInterface {
	c.t.Helper()
	conn, err := daemon.Dialer(creds)(address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return patient{conn}
}

// patient makes a call again for which there was no store after a while, as where the
// whole machine stands still for seconds. Who is refused is so at once.
type patient struct{ *grpc.ClientConn }

const standstill = time.Second

func (p patient) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	for {
		began := time.Now()
		err := p.ClientConn.Invoke(ctx, method, args, reply, opts...)
		if status.Code(err) != codes.Unavailable || time.Since(began) < standstill || ctx.Err() != nil {
			return err
		}
	}
}

// request makes a key and a certificate request for it.
func request(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func pair(t *testing.T, key *ecdsa.PrivateKey, certificate []byte) *tls.Certificate {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tls.X509KeyPair(certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// authority is a client of the authority, of one who trusts the cluster's.
func (c *closed) authority(who *tls.Certificate) cav1.AuthorityServiceClient {
	c.t.Helper()
	config, err := mtls.User(who, c.ca, "")
	if err != nil {
		c.t.Fatal(err)
	}
	return cav1.NewAuthorityServiceClient(c.connect(c.api, credentials.NewTLS(config)))
}

// join joins as a node, or as a manager daemon.
func (c *closed) join(name, token string) (*tls.Certificate, error) {
	c.t.Helper()
	key, r := request(c.t)
	ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
	defer cancel()
	resp, err := c.authority(nil).Join(ctx, &cav1.JoinRequest{Token: token, Request: r, Name: name})
	if err != nil {
		return nil, err
	}
	return pair(c.t, key, resp.Certificate), nil
}

// user issues a certificate to a person.
func (c *closed) user(role authv1.Role, seconds int64) *tls.Certificate {
	c.t.Helper()
	key, r := request(c.t)
	req := &musterv1.CreateCertificateRequest{Request: string(r), Name: "user", Role: auth.RoleName(role)}
	if seconds > 0 {
		req.Lifetime = durationpb.New(time.Duration(seconds) * time.Second)
	}
	resp, err := musterv1.NewControlServiceClient(c.dial(c.api, nil)).CreateCertificate(c.with(c.admin), req)
	if err != nil {
		c.t.Fatal(err)
	}
	return pair(c.t, key, []byte(resp.Certificate))
}

func expect(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want code %v", what, err, want)
	}
}

// logged waits for a line of a daemon's log with all the parts: a client that is refused may
// know it before it is logged.
func (c *closed) logged(daemon string, parts ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s logs a line with %q", daemon, parts), func() bool {
		for line := range bytes.Lines(c.file(daemon + ".log")) {
			all := true
			for _, p := range parts {
				all = all && bytes.Contains(line, []byte(p))
			}
			if all {
				return true
			}
		}
		return false
	})
}
