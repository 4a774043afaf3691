package authority

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/store"
)

// maxNamed bounds how many daemons and nodes a rotation names that it waits for.
const maxNamed = 100

// rotationError returns the error for a caller whose rotation was refused.
func rotationError(err error) error {
	switch {
	case errors.Is(err, ca.ErrRotating):
		return status.Error(codes.FailedPrecondition, "a rotation of the root is under way; `muster cluster ca status` shows what it waits for, and `muster cluster ca rotate --finish` ends it")
	case errors.Is(err, ca.ErrNotRotating):
		return status.Error(codes.FailedPrecondition, "there is no rotation of the root to finish")
	}
	return err
}

func (c *Control) GetAuthority(ctx context.Context, _ *musterv1.GetAuthorityRequest) (*musterv1.GetAuthorityResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	m, err := c.authorityMessage(ctx, own)
	return &musterv1.GetAuthorityResponse{Authority: m}, err
}

func (c *Control) RotateAuthority(ctx context.Context, req *musterv1.RotateAuthorityRequest) (*musterv1.RotateAuthorityResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	writing, cancel := c.backend.Writing(ctx)
	defer cancel()
	if req.Finish {
		var roots *ca.Roots
		if roots, err = own.Roots(writing); err == nil {
			err = own.FinishRotation(writing, roots.Signing)
		}
	} else {
		err = own.Rotate(writing, backend.Caller(ctx))
	}
	if err != nil {
		return nil, c.backend.Fail("rotate root", rotationError(err))
	}
	c.backend.Log.Info("rotation of the root", zap.Bool("finish", req.Finish), zap.String("by", backend.Caller(ctx)))
	m, err := c.authorityMessage(ctx, own)
	return &musterv1.RotateAuthorityResponse{Authority: m}, err
}

func (c *Control) authorityMessage(ctx context.Context, own *ca.Authority) (*musterv1.Authority, error) {
	roots, err := own.Roots(ctx)
	if err != nil {
		return nil, c.backend.Fail("get authority", err)
	}
	m := &musterv1.Authority{Domain: roots.Domain, Certificates: string(roots.PEM)}
	if roots.Rotation == nil {
		return m, nil
	}
	m.Rotation = &musterv1.RootRotation{StartedAt: timestamppb.New(time.UnixMilli(roots.Rotation.StartedAt)), StartedBy: roots.Rotation.StartedBy}
	if !roots.Rotating() {
		m.Rotation.EndedAt = timestamppb.New(time.UnixMilli(roots.Rotation.EndedAt))
		return m, nil
	}
	waiting, why := c.behind(ctx, roots, time.Now())
	m.Rotation.Waiting, m.Rotation.Message = uint64(len(waiting)), why
	m.Rotation.WaitingFor = waiting[:min(len(waiting), maxNamed)]
	return m, nil
}

// behind returns the manager daemons and nodes that have not shown a certificate of the new
// root yet. It asks the daemons; workers show theirs when they call Check. Why names another
// reason to wait, or why the answer is not known.
func (a *Authority) behind(ctx context.Context, roots *ca.Roots, now time.Time) (waiting []string, why string) {
	if left := time.UnixMilli(roots.Rotation.StartedAt).Add(a.opt.RotationLeast).Sub(now); left > 0 {
		why = fmt.Sprintf("the old root is trusted for %v more, for daemons and workers that are off", left.Round(time.Second))
	}
	found := a.opt.Looker.Look(ctx)
	if found.Store.Err != nil {
		return nil, "the store does not answer: " + found.Store.Err.Error()
	}
	signing := hex.EncodeToString(roots.Signing)
	for _, ownership := range found.Ownership {
		for _, m := range ownership.Members {
			if r := found.Reports[m.Instance]; r.Err != nil || r.ReportResponse == nil || r.Root != signing {
				waiting = append(waiting, m.Daemon+" "+m.Instance)
			}
		}
	}
	for e := range a.backend.Tables.Nodes.Scan(a.backend.Snapshot(), "") {
		if n := e.Value; !n.Removed && n.CertificateEnds > now.UnixMilli() && !bytes.Equal(n.CertificateRoot, roots.Signing) {
			waiting = append(waiting, "node "+e.Key)
		}
	}
	slices.Sort(waiting)
	return slices.Compact(waiting), why
}

// EndRotation drops the old root when no daemon or node needs it any longer.
func (a *Authority) EndRotation(ctx context.Context) {
	if a.opt.Own == nil {
		return
	}
	ctx, cancel := a.backend.Writing(ctx)
	defer cancel()
	roots, err := a.opt.Own.Roots(ctx)
	if err != nil || !roots.Rotating() {
		return
	}
	// From here on the snapshot contains what others have written.
	if err := a.backend.Sync(ctx, a.backend.Tables.Nodes); err != nil {
		return
	}
	waiting, why := a.behind(ctx, roots, time.Now())
	if len(waiting) > 0 || why != "" {
		a.backend.Log.Info("root rotation continues", zap.Int("waiting", len(waiting)), zap.Strings("for", waiting[:min(len(waiting), 10)]), zap.String("reason", why))
		return
	}
	if err := a.opt.Own.FinishRotation(ctx, roots.Signing); err != nil && !errors.Is(err, ca.ErrNotRotating) {
		a.backend.Log.Warn("the old root is trusted until the next sweep", zap.Error(err))
	}
}

// Check returns the authority's roots, and records the root of a worker's certificate.
func (a *Service) Check(ctx context.Context, _ *cav1.CheckRequest) (*cav1.CheckResponse, error) {
	own, err := a.prepared(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := own.Roots(ctx)
	if err != nil {
		return nil, a.backend.Fail("check certificate", err)
	}
	caller, ok := auth.CallerOf(ctx)
	if ok && caller.Role == authv1.Role_WORKER {
		if e, ok := a.backend.Tables.Nodes.Get(a.backend.Snapshot(), caller.Name); ok && e.Value.Removed {
			return nil, a.opt.Guard.Refuse(ctx, cav1.AuthorityService_Check_FullMethodName, removedNode(caller.Name))
		}
		if roots.Rotating() && caller.Certificate != nil {
			if err := a.noteRoot(ctx, caller.Name, roots.Of(caller.Certificate)); err != nil {
				return nil, err
			}
		}
	}
	// Rounded up, because 0 would mean at once.
	return &cav1.CheckResponse{Authorities: roots.PEM, AgainSeconds: int64((own.CheckInterval() + time.Second - 1) / time.Second)}, nil
}

// noteRoot records the root of the certificate of a node's worker.
func (a *Service) noteRoot(ctx context.Context, node string, root []byte) error {
	if e, ok := a.backend.Tables.Nodes.Get(a.backend.Snapshot(), node); !ok || bytes.Equal(e.Value.CertificateRoot, root) {
		return nil
	}
	ctx, cancel := a.backend.Writing(ctx)
	defer cancel()
	err := a.backend.Update(ctx, func(tx *store.Tx) error {
		e, ok := a.backend.Tables.Nodes.Get(tx, node)
		if !ok || bytes.Equal(e.Value.CertificateRoot, root) {
			return backend.ErrNoChange
		}
		record := proto.CloneOf(e.Value)
		record.CertificateRoot = root
		a.backend.Tables.Nodes.Put(tx, node, record)
		return nil
	})
	return a.backend.Fail("note root of node", err)
}

func removedNode(node string) error {
	return status.Errorf(codes.PermissionDenied, "node %s was removed from the cluster; with an empty data directory its worker joins as a new one", node)
}
