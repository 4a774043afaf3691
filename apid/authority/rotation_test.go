package authority_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/authority"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/store"
)

const rotationLeast = 10 * time.Minute

// instances are the daemons of a cluster, with the root that each reports, and why the
// store does not answer.
type instances struct {
	roots map[string]string
	away  error
}

func (i *instances) Look(context.Context) clusterstatus.Findings {
	found := clusterstatus.Findings{
		Store: clusterstatus.Store{Err: i.away}, Ownership: map[string]shards.Ownership{}, Reports: map[string]clusterstatus.Report{},
	}
	for instance, root := range i.roots {
		found.Ownership[instance] = shards.Ownership{Members: []shards.Member{{Instance: instance, Daemon: "apid"}}}
		found.Reports[instance] = clusterstatus.Report{ReportResponse: &daemonv1.ReportResponse{Root: root}}
	}
	return found
}

// startRotating starts an authority that waits for the instances.
func startRotating(t *testing.T, i *instances) *fixture {
	t.Helper()
	return startWith(t, authority.Options{Looker: i, RotationLeast: rotationLeast})
}

// certified joins a node, and returns the certificate that it gets.
func (f *fixture) certified(node string) *x509.Certificate {
	f.t.Helper()
	resp, err := f.Service().Join(f.t.Context(), &cav1.JoinRequest{Name: node, Token: f.tokens.Worker, Request: request(f.t)})
	if err != nil {
		f.t.Fatal(err)
	}
	return parse(f.t, resp.Certificate)
}

func parse(t *testing.T, certificates []byte) *x509.Certificate {
	t.Helper()
	if block, _ := pem.Decode(certificates); block != nil {
		certificates = block.Bytes
	}
	c, err := x509.ParseCertificate(certificates)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// by returns the context of a call of a worker that shows a certificate.
func (f *fixture) by(certificate *x509.Certificate) context.Context {
	f.t.Helper()
	id, err := auth.FromCertificate(certificate)
	if err != nil {
		f.t.Fatal(err)
	}
	guard, err := auth.New(func() string { return id.Domain }, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		f.t.Fatal(err)
	}
	server := grpc.NewServer()
	cav1.RegisterAuthorityServiceServer(server, f.Service())
	if err := guard.RegisterRules(server.GetServiceInfo()); err != nil {
		f.t.Fatal(err)
	}
	chain := []*x509.Certificate{certificate}
	call := (&http.Request{TLS: &tls.ConnectionState{PeerCertificates: chain, VerifiedChains: [][]*x509.Certificate{chain}}}).WithContext(f.t.Context())
	ctx, err := guard.AdmitREST(call, cav1.AuthorityService_Check_FullMethodName)
	if err != nil {
		f.t.Fatal(err)
	}
	return ctx
}

func (f *fixture) check(certificate *x509.Certificate) {
	f.t.Helper()
	if _, err := f.Service().Check(f.by(certificate), &cav1.CheckRequest{}); err != nil {
		f.t.Fatal(err)
	}
}

// now returns the authority as operators see it.
func (f *fixture) now() *musterv1.Authority {
	f.t.Helper()
	resp, err := f.Control().GetAuthority(f.t.Context(), &musterv1.GetAuthorityRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Authority
}

func (f *fixture) rotate(finish bool) (*musterv1.Authority, error) {
	resp, err := f.Control().RotateAuthority(f.t.Context(), &musterv1.RotateAuthorityRequest{Finish: finish})
	return resp.GetAuthority(), err
}

// signing is the digest of the root that signs, as daemons report it.
func (f *fixture) signing() string {
	f.t.Helper()
	roots, err := f.own.Roots(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return hex.EncodeToString(roots.Signing)
}

func (f *fixture) wantWaiting(when string, want ...string) {
	f.t.Helper()
	r := f.now().Rotation
	if !slices.Equal(r.GetWaitingFor(), want) || r.GetWaiting() != uint64(len(want)) || r.GetEndedAt() != nil {
		f.t.Errorf("%s: the rotation is %v, want one that waits for %q", when, r, want)
	}
}

func roots(a *musterv1.Authority) int { return strings.Count(a.Certificates, "BEGIN CERTIFICATE") }

func TestRotationEndsWhenAllHaveRenewedAndItsLeastTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		daemons := &instances{}
		f := startRotating(t, daemons)
		daemons.roots = map[string]string{"apid-1": f.signing()}
		first := f.certified("n1")
		f.update(func(tx *store.Tx) {
			ended := time.Now().Add(-time.Minute).UnixMilli()
			f.backend.Tables.Nodes.Put(tx, "removed", &recordv1.Node{Removed: true, CertificateEnds: time.Now().Add(lifetime).UnixMilli()})
			f.backend.Tables.Nodes.Put(tx, "without-certificate", &recordv1.Node{CertificateEnds: ended})
		})
		if a := f.now(); a.Rotation != nil || roots(a) != 1 {
			t.Fatalf("before the rotation the authority is %v", a)
		}

		a, err := f.rotate(false)
		if err != nil || roots(a) != 2 || !strings.Contains(a.Rotation.Message, "the old root is trusted for 10m0s more") {
			t.Fatalf("rotate: %v, %v", a, err)
		}
		f.wantWaiting("at first", "apid apid-1", "node n1")
		_, err = f.rotate(false)
		wantCode(t, "rotate again", err, codes.FailedPrecondition)
		f.check(first)
		f.wantWaiting("after a check with the old certificate", "apid apid-1", "node n1")

		renewed, err := f.Service().Renew(f.by(first), &cav1.RenewRequest{Request: request(t)})
		if err != nil {
			t.Fatal(err)
		}
		f.wantWaiting("while the new certificate was not shown", "apid apid-1", "node n1")
		second := parse(t, renewed.Certificate)
		f.check(second)
		f.wantWaiting("after a check with the new certificate", "apid apid-1")
		daemons.roots["apid-1"] = f.signing()
		f.wantWaiting("before the least time is over")
		f.EndRotation(t.Context())
		f.wantWaiting("after a sweep before the least time is over")

		time.Sleep(rotationLeast)
		f.EndRotation(t.Context())
		if a = f.now(); a.Rotation.EndedAt == nil || roots(a) != 1 || a.Rotation.Waiting != 0 {
			t.Errorf("after the least time: %v", a)
		}
		if root := parse(t, []byte(a.Certificates)); first.CheckSignatureFrom(root) == nil || second.CheckSignatureFrom(root) != nil {
			t.Error("the root that remains is not the one that signed the new certificate")
		}
		wantCode(t, "join with a token that the old root protected", f.join("n2", f.tokens.Worker, request(t)), codes.PermissionDenied)
		_, err = f.rotate(true)
		wantCode(t, "finish again", err, codes.FailedPrecondition)
	})
}

func TestRotationContinuesWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		daemons := &instances{}
		f := startRotating(t, daemons)
		if _, err := f.rotate(false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rotationLeast)
		daemons.away = errors.New("no leader")
		f.EndRotation(t.Context())
		f.wantWaiting("while the store is away")
		if r := f.now().Rotation; !strings.Contains(r.Message, "no leader") {
			t.Errorf("the rotation does not say why it waits: %v", r)
		}
		daemons.away = nil
		f.EndRotation(t.Context())
		if r := f.now().Rotation; r.EndedAt == nil {
			t.Errorf("the rotation has not ended: %v", r)
		}
	})
}

func TestFinishedRotationWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := startRotating(t, &instances{})
		_, err := f.rotate(true)
		wantCode(t, "finish without a rotation", err, codes.FailedPrecondition)
		before := f.now()
		f.certified("n1")
		if _, err := f.rotate(false); err != nil {
			t.Fatal(err)
		}
		a, err := f.rotate(true)
		if err != nil || a.Rotation.EndedAt == nil || roots(a) != 1 || bytes.Equal([]byte(a.Certificates), []byte(before.Certificates)) {
			t.Errorf("finish: %v, %v", a, err)
		}
		if a, err = f.rotate(false); err != nil || roots(a) != 2 {
			t.Errorf("another rotation: %v, %v", a, err)
		}
	})
}
