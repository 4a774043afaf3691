package cluster

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
)

// root is what is known of the root that signs certificates.
type root struct{ authority *musterv1.Authority }

// root asks for the cluster's authority. A cluster that has none of its own has no root.
func (a *API) root(ctx context.Context) (root, error) {
	resp, err := a.Client.GetAuthority(ctx, &musterv1.GetAuthorityRequest{})
	if code := status.Code(err); code == codes.FailedPrecondition || code == codes.Unimplemented || code == codes.NotFound {
		return root{}, nil
	}
	return root{resp.GetAuthority()}, err
}

// of returns the root that a node has a certificate of; none while it has not shown one of
// the new root.
func (r root) of(node string) swarm.TLSInfo {
	if convert.Rotating(r.authority) && slices.Contains(r.authority.GetRotation().GetWaitingFor(), node) {
		return swarm.TLSInfo{}
	}
	return convert.TLSInfo(r.authority)
}
