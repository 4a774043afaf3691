package contractv1

import (
	"context"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/workerd/network"
)

// FromClient makes a Plugin of a connection to another process.
func FromClient(client networkv1.NetworkServiceClient) network.Plugin { return New(&remote{client}) }

// remote is the service of another process.
type remote struct {
	client networkv1.NetworkServiceClient
}

func (r *remote) Describe(ctx context.Context, req *networkv1.DescribeRequest) (*networkv1.DescribeResponse, error) {
	return r.client.Describe(ctx, req)
}

func (r *remote) Apply(ctx context.Context, req *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	return r.client.Apply(ctx, req)
}

func (r *remote) Attach(ctx context.Context, req *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	return r.client.Attach(ctx, req)
}

func (r *remote) Detach(ctx context.Context, req *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	return r.client.Detach(ctx, req)
}

func (r *remote) List(ctx context.Context, req *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	return r.client.List(ctx, req)
}

func (r *remote) Stats(ctx context.Context, req *networkv1.StatsRequest) (*networkv1.StatsResponse, error) {
	return r.client.Stats(ctx, req)
}

func (r *remote) Probe(ctx context.Context, req *networkv1.ProbeRequest) (*networkv1.ProbeResponse, error) {
	return r.client.Probe(ctx, req)
}
