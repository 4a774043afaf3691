package ca_test

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
)

// service is as much of apid as joining takes.
type service struct {
	cav1.UnimplementedAuthorityServiceServer
	own *ca.Authority
	// joins counts, and keys has the digests of the keys that joined.
	joins atomic.Int32
	keys  [][]byte
}

func (s *service) GetAuthority(ctx context.Context, _ *cav1.GetAuthorityRequest) (*cav1.GetAuthorityResponse, error) {
	pem, err := s.own.Certificates(ctx)
	return &cav1.GetAuthorityResponse{Authorities: pem}, err
}

func (s *service) Join(ctx context.Context, req *cav1.JoinRequest) (*cav1.JoinResponse, error) {
	if err := s.own.CheckJoin(ctx, req.Token, false); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	r, err := ca.ParseRequest(req.Request)
	if err != nil {
		return nil, err
	}
	digest, err := r.KeyDigest()
	if err != nil {
		return nil, err
	}
	issued, err := s.own.Issue(ctx, auth.Identity{Role: authv1.Role_WORKER, Name: req.Name}, r, 0)
	if err != nil {
		return nil, err
	}
	s.keys = append(s.keys, digest)
	s.joins.Add(1)
	return &cav1.JoinResponse{Certificate: issued.Certificate, Authorities: issued.Authorities}, nil
}

func (s *service) Check(ctx context.Context, _ *cav1.CheckRequest) (*cav1.CheckResponse, error) {
	pem, err := s.own.Certificates(ctx)
	return &cav1.CheckResponse{Authorities: pem, AgainSeconds: 60}, err
}

// TestJoinsAnewWhileItRuns replaces the root at once, under a worker that has had no
// time to renew. It is refused until the file of its join token names the new root,
// and joins with that, with the key that it had; it need not be started again.
func TestJoinsAnewWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t, newSpace(t), newKey(t))
		if _, err := a.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		token := func() string {
			t.Helper()
			tokens, err := a.JoinTokens(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return tokens.Worker
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 3)
		apid, err := ca.Enrol(ctx, ca.KeeperConfig{Issuer: ca.Local{Authority: a}, Identity: auth.Identity{Role: authv1.Role_APID, Name: "apid"}, Logger: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		l, s := bufconn.Listen(1<<20), &service{own: a}
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(apid.Source().Server(true))))
		cav1.RegisterAuthorityServiceServer(server, s)
		go func() { ended <- server.Serve(l) }()
		go func() { ended <- apid.Run(ctx) }()

		var file atomic.Value
		file.Store(token())
		cfg := ca.KeeperConfig{
			Path: filepath.Join(t.TempDir(), "identity.pem"), Identity: auth.Identity{Role: authv1.Role_WORKER, Name: "n1"}, Logger: zaptest.NewLogger(t),
			Issuer: &ca.Remote{
				Addresses: []string{"apid:1"}, Name: "n1", Token: func() (string, error) { return file.Load().(string), nil },
				Dial: func(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
					return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds),
						grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
				},
			},
		}
		worker, err := ca.Enrol(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- worker.Run(ctx) }()
		time.Sleep(5 * time.Minute)
		first := worker.Source().Get()
		if s.joins.Load() != 1 {
			t.Fatalf("it has joined %d times", s.joins.Load())
		}

		// A token that names a root which is not known is no reason to leave one's own.
		file.Store("MUSTER-1-" + "0000000000000000000000000000000000000000000000000000000000000000" + "-x")
		time.Sleep(5 * time.Minute)
		file.Store(token())
		if now := worker.Source().Get(); now != first || s.joins.Load() != 1 {
			t.Fatalf("it has joined %d times, with a certificate that was good", s.joins.Load())
		}

		if err := a.Rotate(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		roots, err := a.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Drop(t.Context(), roots.Signing); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if now := worker.Source().Get(); now != first || s.joins.Load() != 1 {
			t.Fatalf("it has joined %d times, with a token of the old root", s.joins.Load())
		}
		file.Store(token())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		now := worker.Source().Get()
		if s.joins.Load() != 2 {
			t.Fatalf("it has joined %d times, want 2", s.joins.Load())
		}
		if now.Root == first.Root || now.Certificate.Leaf.Equal(first.Certificate.Leaf) {
			t.Error("it has no certificate of the new root")
		}
		if !bytes.Equal(s.keys[0], s.keys[1]) {
			t.Error("it joined with another key, by which nobody knows it")
		}
		again, err := ca.Enrol(ctx, cfg)
		if err != nil || !again.Source().Get().Certificate.Leaf.Equal(now.Certificate.Leaf) {
			t.Errorf("what it keeps in its file is something else: %v", err)
		}
		cancel()
		server.Stop()
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}
