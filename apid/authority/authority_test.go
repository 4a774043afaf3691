package authority_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/authority"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/sealing"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/store"
)

const lifetime = 12 * time.Hour

// fixture is an authority with its join tokens.
type fixture struct {
	*authority.Authority
	t       *testing.T
	own     *ca.Authority
	backend *backend.Backend
	tokens  *musterv1.GetJoinTokensResponse
}

func start(t *testing.T) *fixture {
	t.Helper()
	return startWith(t, authority.Options{})
}

// startWith starts an authority with options besides its own.
func startWith(t *testing.T, opt authority.Options) *fixture {
	t.Helper()
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	keys := seal.NewKeyring(key)
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := ca.New(ca.Config{KV: space, Prefix: "muster", Keys: keys, Lifetime: lifetime, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- own.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := own.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := backendtest.Start(t)
	opt.Own = own
	opt.Sealer = sealing.New(b, keys, own.SealedWith)
	f := &fixture{Authority: authority.New(b, opt), t: t, own: own, backend: b}
	if f.tokens, err = f.Control().GetJoinTokens(t.Context(), &musterv1.GetJoinTokensRequest{}); err != nil {
		t.Fatal(err)
	}
	return f
}

// request returns a request for a certificate, with a key of its own.
func request(t *testing.T) []byte {
	t.Helper()
	_, request, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func (f *fixture) join(name, token string, request []byte) error {
	f.t.Helper()
	resp, err := f.Service().Join(f.t.Context(), &cav1.JoinRequest{Name: name, Token: token, Request: request})
	if err == nil && (len(resp.Certificate) == 0 || len(resp.Authorities) == 0) {
		f.t.Errorf("%s joins without a certificate: %v", name, resp)
	}
	return err
}

func (f *fixture) update(fn func(tx *store.Tx)) {
	f.t.Helper()
	if err := f.backend.Update(f.t.Context(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		f.t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestClusterWithoutAuthorityRefusesItsCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := backendtest.Start(t)
		a := authority.New(b, authority.Options{Sealer: sealing.New(b, nil, nil)})
		service, control := a.Service(), a.Control()
		for name, call := range map[string]func() error{
			"get authority": func() error { _, err := service.GetAuthority(t.Context(), &cav1.GetAuthorityRequest{}); return err },
			"join":          func() error { _, err := service.Join(t.Context(), &cav1.JoinRequest{}); return err },
			"renew":         func() error { _, err := service.Renew(t.Context(), &cav1.RenewRequest{}); return err },
			"join tokens": func() error {
				_, err := control.GetJoinTokens(t.Context(), &musterv1.GetJoinTokensRequest{})
				return err
			},
			"rotate token": func() error {
				_, err := control.RotateJoinToken(t.Context(), &musterv1.RotateJoinTokenRequest{})
				return err
			},
			"certificate": func() error {
				_, err := control.CreateCertificate(t.Context(), &musterv1.CreateCertificateRequest{})
				return err
			},
			"cluster keys": func() error {
				_, err := control.GetClusterKeys(t.Context(), &musterv1.GetClusterKeysRequest{})
				return err
			},
			"reseal": func() error {
				_, err := control.ResealCluster(t.Context(), &musterv1.ResealClusterRequest{})
				return err
			},
		} {
			err := call()
			wantCode(t, name, err, codes.FailedPrecondition)
			if !strings.Contains(err.Error(), "--cluster-key-file") {
				t.Errorf("%s: error %v does not name the flag", name, err)
			}
		}
		if keys := a.KeyNames(); keys != nil {
			t.Errorf("it has the keys %q", keys)
		}
	})
}

func TestJoinTokenIsOfOneKind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		for _, tt := range []struct {
			name, token string
			want        codes.Code
		}{
			{"n1", f.tokens.Worker, codes.OK},
			{"schedulerd", f.tokens.Manager, codes.OK},
			{"schedulerd", f.tokens.Worker, codes.PermissionDenied},
			{"n2", f.tokens.Manager, codes.PermissionDenied},
			{"n2", "", codes.PermissionDenied},
			{"a b", f.tokens.Worker, codes.InvalidArgument},
		} {
			wantCode(t, tt.name, f.join(tt.name, tt.token, request(t)), tt.want)
		}
		wantCode(t, "no request", f.join("n3", f.tokens.Worker, []byte("x")), codes.InvalidArgument)
	})
}

func TestRotatedJoinTokenReplacesTheFormerOfItsKindOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		rotated, err := f.Control().RotateJoinToken(t.Context(), &musterv1.RotateJoinTokenRequest{Kind: musterv1.RotateJoinTokenRequest_KIND_WORKER})
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "join with the former token", f.join("n1", f.tokens.Worker, request(t)), codes.PermissionDenied)
		wantCode(t, "join with the new token", f.join("n1", rotated.Token, request(t)), codes.OK)
		wantCode(t, "join with the token of the other kind", f.join("schedulerd", f.tokens.Manager, request(t)), codes.OK)
		_, err = f.Control().RotateJoinToken(t.Context(), &musterv1.RotateJoinTokenRequest{})
		wantCode(t, "rotate no kind", err, codes.InvalidArgument)
	})
}

// The holder of a join token must not become a node that is there already.
func TestJoinTokenDoesNotGiveTheNameOfAKnownNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		same := request(t)
		wantCode(t, "join", f.join("n1", f.tokens.Worker, same), codes.OK)
		wantCode(t, "join again with the same key", f.join("n1", f.tokens.Worker, same), codes.OK)
		wantCode(t, "join with another key", f.join("n1", f.tokens.Worker, request(t)), codes.AlreadyExists)

		f.update(func(tx *store.Tx) { f.backend.Tables.NodeStates.Put(tx, "n2", &recordv1.NodeState{}) })
		wantCode(t, "join as a node that has connected", f.join("n2", f.tokens.Worker, request(t)), codes.AlreadyExists)

		f.update(func(tx *store.Tx) { f.backend.Tables.Nodes.Put(tx, "n3", &recordv1.Node{Removed: true}) })
		wantCode(t, "join as a removed node", f.join("n3", f.tokens.Worker, request(t)), codes.PermissionDenied)
	})
}

// TestJoinRefusesTheHardwareAddressOfAnotherNode uses two ids that make the same address.
func TestJoinRefusesTheHardwareAddressOfAnotherNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const one, other = "node-23922", "node-318872"
		f := start(t)
		same := request(t)
		wantCode(t, "join", f.join(one, f.tokens.Worker, same), codes.OK)
		wantCode(t, "join as another node", f.join(other, f.tokens.Worker, request(t)), codes.AlreadyExists)
		wantCode(t, "join again", f.join(one, f.tokens.Worker, same), codes.OK)

		f.update(func(tx *store.Tx) {
			f.backend.Tables.Nodes.Put(tx, one, &recordv1.Node{Removed: true})
			f.backend.Tables.NodeStates.Put(tx, "n2", &recordv1.NodeState{})
		})
		wantCode(t, "join after the other was removed", f.join(other, f.tokens.Worker, request(t)), codes.OK)

		wantCode(t, "join as a node with an odd id", f.join(".n", f.tokens.Worker, request(t)), codes.InvalidArgument)
	})
}

func TestJoinRecordsUntilWhenANodeHasACertificate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		wantCode(t, "join", f.join("n1", f.tokens.Worker, request(t)), codes.OK)
		e, ok := f.backend.Tables.Nodes.Get(f.backend.Snapshot(), "n1")
		if ends := time.UnixMilli(e.Value.GetCertificateEnds()); !ok || time.Until(ends) < lifetime || len(e.Value.GetCertificateKey()) == 0 {
			t.Errorf("the record is %v, want the key and an end in %v or later", e.Value, lifetime)
		}
	})
}

func TestRenewalInTheClearIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		_, err := f.Service().Renew(t.Context(), &cav1.RenewRequest{Request: request(t)})
		wantCode(t, "renew in the clear", err, codes.Unauthenticated)
	})
}

func TestCertificatesOfPeopleAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		for name, tt := range map[string]struct {
			req   *musterv1.CreateCertificateRequest
			field string
		}{
			"accepted":      {&musterv1.CreateCertificateRequest{Name: "ann", Role: "viewer", Lifetime: durationpb.New(time.Hour)}, ""},
			"no lifetime":   {&musterv1.CreateCertificateRequest{Name: "ann", Role: "operator"}, ""},
			"no name":       {&musterv1.CreateCertificateRequest{Role: "viewer"}, "name"},
			"worker":        {&musterv1.CreateCertificateRequest{Name: "ann", Role: "worker"}, "role"},
			"too long":      {&musterv1.CreateCertificateRequest{Name: "ann", Role: "viewer", Lifetime: durationpb.New(lifetime + time.Second)}, "lifetime"},
			"no time":       {&musterv1.CreateCertificateRequest{Name: "ann", Role: "viewer", Lifetime: durationpb.New(0)}, "lifetime"},
			"not a request": {&musterv1.CreateCertificateRequest{Name: "ann", Role: "viewer", Request: "x"}, "request"},
		} {
			if tt.req.Request == "" {
				tt.req.Request = string(request(t))
			}
			resp, err := f.Control().CreateCertificate(t.Context(), tt.req)
			if tt.field == "" {
				if wantCode(t, name, err, codes.OK); time.Until(resp.GetExpiresAt().AsTime()) > lifetime {
					t.Errorf("%s: the certificate ends at %v", name, resp.GetExpiresAt().AsTime())
				}
				continue
			}
			if wantCode(t, name, err, codes.InvalidArgument); !strings.Contains(err.Error(), tt.field+":") {
				t.Errorf("%s: error %v does not name the field %s", name, err, tt.field)
			}
		}
	})
}
