// Package authority serves the cluster's own certificate authority: to daemons and
// workers, which join and renew their certificates, and to operators, who rotate its
// root, its join tokens and the keys that seal its secrets.
package authority

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/api/nodeid"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/store"
)

// Options are what the authority needs besides the store.
type Options struct {
	// Own is the authority, run by the caller. Nil: certificates come from elsewhere.
	Own *ca.Authority
	// Guard counts refusals.
	Guard *auth.Guard
	// Looker finds the instances of daemons.
	Looker interface {
		Look(ctx context.Context) clusterstatus.Findings
	}
	// Sealer has the cluster's keys.
	Sealer *sealing.Sealer
	// RotationLeast is how long a rotation of the root takes at least.
	RotationLeast time.Duration
}

// Authority is the cluster's certificate authority in one replica of apid.
type Authority struct {
	backend *backend.Backend
	opt     Options

	// sealing is held by who looks whether task specs can be sealed; looked is when that
	// was last.
	sealing sync.Mutex
	looked  time.Time
}

// New returns the authority.
func New(b *backend.Backend, opt Options) *Authority { return &Authority{backend: b, opt: opt} }

// Service serves daemons and workers.
type Service struct {
	*Authority
	cav1.UnimplementedAuthorityServiceServer
}

// Service returns the service for daemons and workers.
func (a *Authority) Service() *Service { return &Service{Authority: a} }

// Control has the calls of the control API that concern the authority.
type Control struct{ *Authority }

// Control returns the calls of the control API.
func (a *Authority) Control() *Control { return &Control{a} }

// errNoAuthority answers where certificates come from elsewhere.
func errNoAuthority() error {
	return status.Error(codes.FailedPrecondition, "this cluster has no authority of its own: apid was started without --cluster-key-file")
}

// prepared returns the authority, once there is all that it takes.
func (a *Authority) prepared(ctx context.Context) (*ca.Authority, error) {
	if a.opt.Own == nil {
		return nil, errNoAuthority()
	}
	return a.opt.Own, a.backend.Ready(ctx)
}

func (a *Service) GetAuthority(ctx context.Context, _ *cav1.GetAuthorityRequest) (*cav1.GetAuthorityResponse, error) {
	own, err := a.prepared(ctx)
	if err != nil {
		return nil, err
	}
	pem, err := own.Certificates(ctx)
	return &cav1.GetAuthorityResponse{Authorities: pem}, a.backend.Fail("get authority", err)
}

func (a *Service) Join(ctx context.Context, req *cav1.JoinRequest) (*cav1.JoinResponse, error) {
	own, err := a.prepared(ctx)
	if err != nil {
		return nil, err
	}
	role, manager := auth.Managers()[req.Name]
	if !manager {
		role = authv1.Role_WORKER
	}
	id := auth.Identity{Role: role, Name: req.Name}
	err = auth.ValidName(req.Name)
	if err == nil && !manager {
		err = nodeid.Check(req.Name)
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	request, err := ca.ParseRequest(req.Request)
	if err == nil {
		err = request.CheckHosts()
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	refuse := func(err error) error {
		return a.opt.Guard.Refuse(ctx, cav1.AuthorityService_Join_FullMethodName, err)
	}
	if err := own.CheckJoin(ctx, req.Token, manager); errors.Is(err, ca.ErrToken) {
		return nil, refuse(status.Errorf(codes.PermissionDenied, "%s may not join: %v", id, err))
	} else if err != nil {
		return nil, a.backend.Fail("check join token", err)
	}
	if !manager {
		if err := a.admitNode(ctx, req.Name, request, own.Lifetime()); status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.AlreadyExists {
			return nil, refuse(err)
		} else if err != nil {
			return nil, err
		}
	}
	issued, err := own.Issue(ctx, id, request, 0)
	if err != nil {
		return nil, a.backend.Fail("issue certificate", err)
	}
	return &cav1.JoinResponse{Certificate: issued.Certificate, Authorities: issued.Authorities}, nil
}

func (a *Service) Renew(ctx context.Context, req *cav1.RenewRequest) (*cav1.RenewResponse, error) {
	own, err := a.prepared(ctx)
	if err != nil {
		return nil, err
	}
	caller, ok := auth.CallerOf(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "there is no certificate to renew: connections are in the clear")
	}
	request, err := ca.ParseRequest(req.Request)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	if caller.Role == authv1.Role_WORKER {
		if err := a.renewNode(ctx, caller, request, own.Lifetime()); status.Code(err) == codes.PermissionDenied {
			return nil, a.opt.Guard.Refuse(ctx, cav1.AuthorityService_Renew_FullMethodName, err)
		} else if err != nil {
			return nil, err
		}
	}
	issued, err := own.Issue(ctx, caller.Identity, request, 0)
	if err != nil {
		return nil, a.backend.Fail("renew certificate", err)
	}
	return &cav1.RenewResponse{Certificate: issued.Certificate, Authorities: issued.Authorities}, nil
}

// admitNode records that a node has a certificate. The node's id must be new, or
// its key certified before: the holder of a join token must not become an existing
// node.
func (a *Service) admitNode(ctx context.Context, node string, r *ca.Request, lifetime time.Duration) error {
	if err := a.checkHardwareAddress(node); err != nil {
		return err
	}
	return a.certifyNode(ctx, node, r, lifetime, func(tx *store.Tx, known *recordv1.Node, key []byte) error {
		if bytes.Equal(known.CertificateKey, key) || bytes.Equal(known.CertificateKeyBefore, key) {
			return nil
		}
		_, connected := a.backend.Tables.NodeStates.Get(tx, node)
		if connected || len(known.CertificateKey) > 0 {
			return status.Errorf(codes.AlreadyExists,
				"node %s is known to the cluster, with another key; remove it, or start the worker with an empty data directory, which gives it a new id", node)
		}
		return nil
	})
}

// checkHardwareAddress refuses the id of a new node that has the hardware address of
// another node on networks: neither would get traffic. Two that join at the same moment
// are not found, and left out by the networks' nodes.
func (a *Service) checkHardwareAddress(node string) error {
	now, t := a.backend.Snapshot(), a.backend.Tables
	if _, known := t.Nodes.Get(now, node); known {
		return nil
	}
	own := nodeid.HardwareAddress(node)
	taken := func(other string) error {
		if other == node || !bytes.Equal(nodeid.HardwareAddress(other), own) {
			return nil
		}
		return status.Errorf(codes.AlreadyExists, "name: node %s has the same hardware address %s on networks: give the worker another node id", other, own)
	}
	for e := range t.Nodes.Scan(now, "") {
		if err := taken(e.Key); err != nil && !e.Value.Removed {
			return err
		}
	}
	for e := range t.NodeStates.Scan(now, "") {
		if err := taken(e.Key); err != nil {
			return err
		}
	}
	return nil
}

// renewNode does so for a node that shows a certificate of the newest key or, for
// the answer with that may have been lost, of the one before. A certificate of any
// other key was signed by another authority.
func (a *Service) renewNode(ctx context.Context, caller auth.Caller, r *ca.Request, lifetime time.Duration) error {
	if caller.Certificate == nil {
		return status.Error(codes.PermissionDenied, "a worker renews with the certificate that it has")
	}
	shown, err := ca.KeyDigest(caller.Certificate.PublicKey)
	if err != nil {
		return a.backend.Fail("renew certificate of node", err)
	}
	return a.certifyNode(ctx, caller.Name, r, lifetime, func(_ *store.Tx, known *recordv1.Node, _ []byte) error {
		switch {
		case len(known.CertificateKey) == 0:
			// Its certificate was brought from elsewhere.
		case bytes.Equal(known.CertificateKey, shown), bytes.Equal(known.CertificateKeyBefore, shown):
			known.CertificateKeyBefore = shown
		default:
			return status.Errorf(codes.PermissionDenied, "node %s has renewed with another key since: join with a join token", caller.Name)
		}
		return nil
	})
}

// certifyNode writes down until when, and with which key, a node can prove
// itself, before it can.
func (a *Service) certifyNode(ctx context.Context, node string, r *ca.Request, lifetime time.Duration, check func(*store.Tx, *recordv1.Node, []byte) error) error {
	key, err := r.KeyDigest()
	if err != nil {
		return a.backend.Fail("certify node", err)
	}
	ctx, cancel := a.backend.Writing(ctx)
	defer cancel()
	err = a.backend.Update(ctx, func(tx *store.Tx) error {
		now := time.Now()
		record := &recordv1.Node{CreatedAt: now.UnixMilli()}
		if e, ok := a.backend.Tables.Nodes.Get(tx, node); ok {
			record = proto.CloneOf(e.Value)
		}
		if record.Removed {
			return removedNode(node)
		}
		if err := check(tx, record, key); err != nil {
			return err
		}
		record.CertificateKey, record.UpdatedAt = key, now.UnixMilli()
		record.CertificateEnds = max(record.CertificateEnds, now.Add(lifetime+time.Minute).UnixMilli())
		a.backend.Tables.Nodes.Put(tx, node, record)
		return nil
	})
	return a.backend.Fail("certify node", err)
}

func (c *Control) GetJoinTokens(ctx context.Context, _ *musterv1.GetJoinTokensRequest) (*musterv1.GetJoinTokensResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	tokens, err := own.JoinTokens(ctx)
	return &musterv1.GetJoinTokensResponse{Worker: tokens.Worker, Manager: tokens.Manager}, c.backend.Fail("get join tokens", err)
}

func (c *Control) RotateJoinToken(ctx context.Context, req *musterv1.RotateJoinTokenRequest) (*musterv1.RotateJoinTokenResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	manager := req.Kind == musterv1.RotateJoinTokenRequest_KIND_MANAGER
	if !manager && req.Kind != musterv1.RotateJoinTokenRequest_KIND_WORKER {
		return nil, status.Error(codes.InvalidArgument, "kind: is neither KIND_WORKER nor KIND_MANAGER")
	}
	ctx, cancel := c.backend.Writing(ctx)
	defer cancel()
	token, err := own.RotateJoin(ctx, manager)
	if err != nil {
		return nil, c.backend.Fail("rotate join token", err)
	}
	c.backend.Log.Info("join token is replaced", zap.Stringer("kind", req.Kind), zap.String("by", backend.Caller(ctx)))
	return &musterv1.RotateJoinTokenResponse{Token: token}, nil
}
