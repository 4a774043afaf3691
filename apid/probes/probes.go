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
func (p *Prober) Probe(ctx context.Context, node, network, service string) (response *networkv1.ProbeResponse, err error) {
	if !p.open.TryAcquire(1) {
		return nil, status.Errorf(codes.ResourceExhausted, "%d network tests are running at the moment; try again soon", mostAtOnce)
	}
	defer p.open.Release(1)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	address, ok := p.owner(node)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "no dispatcher serves node %s at the moment; try again soon", node)
	}
	conn, err := p.dial(address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	resp, err := dispatcherv1.NewProbeServiceClient(conn).Probe(ctx, &dispatcherv1.ProbeRequest{NodeId: node, NetworkId: network, ServiceId: service})
	return resp.GetResponse(), err
}
