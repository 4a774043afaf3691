// Package probes has nodes try whether services are reached on networks, and says
// where the way breaks.
package probes

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// timeout bounds one probe, and mostAtOnce how many run at the same time.
	timeout    = 40 * time.Second
	mostAtOnce = 16
)

// Prober asks dispatchers.
type Prober struct {
	owner func(node string) (address string, ok bool)
	dial  func(address string) (*grpc.ClientConn, error)
	open  *semaphore.Weighted
}

// NewProber returns a prober. Owner tells the address of the dispatcher that owns a node,
// and dial connects to it.
func NewProber(owner func(node string) (string, bool), dial func(string) (*grpc.ClientConn, error)) *Prober {
	return &Prober{owner: owner, dial: dial, open: semaphore.NewWeighted(mostAtOnce)}
}

// Probe has a node try whether a service is reached on a network.
func (p *Prober) Probe(ctx context.Context, node, network, service string) (*networkv1.ProbeResponse, error) {
	resp, err := p.ask(ctx, &dispatcherv1.ProbeRequest{NodeId: node, NetworkId: network, ServiceId: service})
	return resp.GetResponse(), err
}

// Volumes returns the volumes of a node.
func (p *Prober) Volumes(ctx context.Context, node string) ([]*musterv1.NodeVolume, error) {
	resp, err := p.ask(ctx, &dispatcherv1.ProbeRequest{NodeId: node, Volumes: &dispatcherv1.VolumeOrder{}})
	if err == nil {
		err = volumeError(resp.GetVolumes())
	}
	return resp.GetVolumes().GetVolumes(), err
}

// RemoveVolume removes a volume of a node.
func (p *Prober) RemoveVolume(ctx context.Context, node, name string) error {
	resp, err := p.ask(ctx, &dispatcherv1.ProbeRequest{NodeId: node, Volumes: &dispatcherv1.VolumeOrder{Remove: name}})
	if err != nil {
		return err
	}
	return volumeError(resp.GetVolumes())
}

// volumeError returns what a node says about volumes that it could not list or remove.
func volumeError(r *dispatcherv1.VolumeResult) error {
	if r.GetError() == "" {
		return nil
	}
	code := codes.Code(r.GetCode())
	switch code {
	case codes.NotFound, codes.FailedPrecondition, codes.Unavailable, codes.Unimplemented, codes.InvalidArgument:
	default:
		code = codes.Unavailable
	}
	return status.Error(code, r.GetError())
}

func (p *Prober) ask(ctx context.Context, req *dispatcherv1.ProbeRequest) (response *dispatcherv1.ProbeResponse, err error) {
	if !p.open.TryAcquire(1) {
		return nil, status.Errorf(codes.ResourceExhausted, "%d nodes are asked something at the moment; try again soon", mostAtOnce)
	}
	defer p.open.Release(1)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	address, ok := p.owner(req.NodeId)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "no dispatcher serves node %s at the moment; try again soon", req.NodeId)
	}
	conn, err := p.dial(address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return dispatcherv1.NewProbeServiceClient(conn).Probe(ctx, req)
}
