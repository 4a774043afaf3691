package authority

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/ca"
)

// KeyNames implements daemon.KeyHolder.
func (a *Authority) KeyNames() []string {
	if a.opt.Own == nil {
		return nil
	}
	return a.opt.Own.KeyNames()
}

func (c *Control) GetClusterKeys(ctx context.Context, _ *musterv1.GetClusterKeysRequest) (*musterv1.GetClusterKeysResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	sealed, err := own.SealedWith(ctx)
	if err != nil {
		return nil, c.backend.Fail("get cluster keys", err)
	}
	holders, err := c.keyHolders(ctx)
	return &musterv1.GetClusterKeysResponse{SealedWith: sealed, Holders: holders}, err
}

func (c *Control) ResealCluster(ctx context.Context, _ *musterv1.ResealClusterRequest) (*musterv1.ResealClusterResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	before, err := own.SealedWith(ctx)
	if err != nil {
		return nil, c.backend.Fail("reseal", err)
	}
	holders, err := c.keyHolders(ctx)
	if err != nil {
		return nil, err
	}
	key := c.KeyNames()[0]
	var without []string
	for _, h := range holders {
		if !slices.Contains(h.Keys, key) {
			without = append(without, strings.TrimSpace(h.Instance+" at "+h.Address+" "+h.Problem))
		}
	}
	if len(without) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition,
			"key %s cannot seal yet, for these apids could not open what it seals (write it into their --cluster-key-file): %s", key, strings.Join(without, "; "))
	}
	writing, cancel := c.backend.Writing(ctx)
	defer cancel()
	if before != key {
		if err := own.Reseal(writing, key, backend.Caller(ctx)); errors.Is(err, ca.ErrOtherKey) {
			return nil, status.Error(codes.Aborted, "the file with the cluster's keys has changed meanwhile; try again")
		} else if err != nil {
			return nil, c.backend.Fail("reseal", err)
		}
	}
	return &musterv1.ResealClusterResponse{SealedWith: key, Before: before, Holders: holders}, nil
}

// keyHolders asks every apid which of the cluster's keys it has.
func (c *Control) keyHolders(ctx context.Context) ([]*musterv1.KeyHolder, error) {
	found := c.opt.Looker.Look(ctx)
	if found.Store.Err != nil {
		return nil, status.Errorf(codes.Unavailable, "it is not known which apids there are, for the store does not answer: %v", found.Store.Err)
	}
	var holders []*musterv1.KeyHolder
	seen := map[string]bool{}
	for _, ownership := range found.Ownership {
		for _, m := range ownership.Members {
			if m.Daemon != c.opt.Daemon || seen[m.Instance] {
				continue
			}
			seen[m.Instance] = true
			h := &musterv1.KeyHolder{Instance: m.Instance, Address: m.Address}
			switch r := found.Reports[m.Instance]; {
			case r.Err != nil:
				h.Problem = r.Err.Error()
			case r.ReportResponse == nil || len(r.Keys) == 0:
				h.Problem = "it does not say which keys it has"
			default:
				h.Keys = r.Keys
			}
			holders = append(holders, h)
		}
	}
	slices.SortFunc(holders, func(a, b *musterv1.KeyHolder) int { return cmp.Compare(a.Instance, b.Instance) })
	return holders, nil
}
