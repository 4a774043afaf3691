package ca_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
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
	// joins counts, and keys has the digests of the keys that joined, by the nodes' names.
	joins atomic.Int32
	keys  sync.Map
	// away makes the service refuse all connections.
	away atomic.Bool
	l    *bufconn.Listener
}

// serve serves an authority of its own, until ctx ends: then done returns. Times are
// virtual.
func serve(ctx context.Context, t *testing.T) (s *service, done func()) {
	t.Helper()
	a := run(t, newSpace(t), newKey(t))
	if _, err := a.Init(ctx); err != nil {
		t.Fatal(err)
	}
	apid, err := ca.Join(ctx, ca.RenewerConfig{Issuer: ca.Local{Authority: a}, Identity: auth.Identity{Role: authv1.Role_APID, Name: "apid"}, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s = &service{own: a, l: bufconn.Listen(64 << 10)}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(apid.Source().Server(true))))
	cav1.RegisterAuthorityServiceServer(server, s)
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(s.l) }()
	go func() { ended <- apid.Run(ctx) }()
	return s, func() {
		<-ctx.Done()
		server.Stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
}

// worker is what a worker of a name gets its certificate by.
func (s *service) worker(t *testing.T, name string, token func() (string, error)) ca.RenewerConfig {
	t.Helper()
	return ca.RenewerConfig{
		Path: filepath.Join(t.TempDir(), "identity.pem"), Identity: auth.Identity{Role: authv1.Role_WORKER, Name: name}, Logger: zaptest.NewLogger(t),
		Issuer: &ca.Remote{
			Addresses: []string{"apid:1"}, Name: name, Token: token,
			Dial: func(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
				return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
						if s.away.Load() {
							return nil, errors.New("apid is away")
						}
						return s.l.DialContext(ctx)
					}))
			},
		},
	}
}

// token is the present join token.
func (s *service) token(t *testing.T) string {
	t.Helper()
	tokens, err := s.own.JoinTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tokens.Worker
}

// Renew refuses after a while, as an apid does that has lost its store.
func (s *service) Renew(ctx context.Context, _ *cav1.RenewRequest) (*cav1.RenewResponse, error) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	return nil, status.Error(codes.Unavailable, "the store is away")
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
	if was, again := s.keys.LoadOrStore(req.Name, digest); again && !bytes.Equal(was.([]byte), digest) {
		return nil, status.Errorf(codes.AlreadyExists, "%s joined with another key, which is not known", req.Name)
	}
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
		ctx, cancel := context.WithCancel(t.Context())
		s, done := serve(ctx, t)
		a := s.own
		var file atomic.Value
		file.Store(s.token(t))
		cfg := s.worker(t, "n1", func() (string, error) { return file.Load().(string), nil })
		worker, err := ca.Join(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- worker.Run(ctx) }()
		time.Sleep(5 * time.Minute)
		first := worker.Source().Get()
		if s.joins.Load() != 1 {
			t.Fatalf("it has joined %d times", s.joins.Load())
		}

		// A token that names a root which is not known is no reason to leave one's own.
		file.Store("MUSTER-1-" + "0000000000000000000000000000000000000000000000000000000000000000" + "-x")
		time.Sleep(5 * time.Minute)
		file.Store(s.token(t))
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
		if err := a.FinishRotation(t.Context(), roots.Signing); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if now := worker.Source().Get(); now != first || s.joins.Load() != 1 {
			t.Fatalf("it has joined %d times, with a token of the old root", s.joins.Load())
		}
		file.Store(s.token(t))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		now := worker.Source().Get()
		if s.joins.Load() != 2 {
			t.Fatalf("it has joined %d times, want 2", s.joins.Load())
		}
		if now.Root == first.Root || now.Certificate.Leaf.Equal(first.Certificate.Leaf) {
			t.Error("it has no certificate of the new root")
		}
		again, err := ca.Join(ctx, cfg)
		if err != nil || !again.Source().Get().Certificate.Leaf.Equal(now.Certificate.Leaf) {
			t.Errorf("what it keeps in its file is something else: %v", err)
		}
		cancel()
		done()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestJoinsWithTheKeyThatIsKnown has certificates end while apid refuses those who
// renew: they join again, each with the key that it had, and none is refused. Until
// shortly before that apid is away, because each attempt costs handshakes.
func TestJoinsWithTheKeyThatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, done := serve(ctx, t)
		const workers = 4
		ended := make(chan error, workers)
		refused, logs := observer.New(zap.WarnLevel)
		for i := range workers {
			cfg := s.worker(t, fmt.Sprint("n", i), func() (string, error) { return s.token(t), nil })
			cfg.Logger = zap.New(refused)
			worker, err := ca.Join(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- worker.Run(ctx) }()
		}
		s.away.Store(true)
		time.Sleep(lifetime - time.Minute)
		s.away.Store(false)
		// A worker pauses between attempts, for longer after each.
		for began := time.Now(); s.joins.Load() < 2*workers && time.Since(began) < lifetime/2; {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if n := s.joins.Load(); n != 2*workers {
			t.Errorf("there were %d joins, want 2 of each of %d", n, workers)
		}
		for _, line := range logs.All() {
			if err, _ := line.ContextMap()["error"].(string); strings.Contains(err, "another key") {
				t.Error(line.Message, err)
			}
		}
		cancel()
		done()
		for range workers {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}
