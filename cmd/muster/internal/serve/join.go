package serve

import (
	"context"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/daemon"
)

// joinTimeout bounds how long a cluster waits for its workers before it says
// that it is up.
const joinTimeout = 10 * time.Second

// awaitWorkers waits until the workers have joined: before, a service would be
// refused for want of executors. It returns the error of a part of the cluster
// that fails meanwhile.
func (c *devCluster) awaitWorkers(ctx context.Context) error {
	if c.workers == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := daemon.Dialer(c.host.Credentials.Client)(c.listeners["apid"].Addr().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := musterv1.NewControlServiceClient(conn)
	attempts := backoff.New(20*time.Millisecond, 200*time.Millisecond)
	for {
		nodes, err := client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: 1000})
		ready := 0
		for _, n := range nodes.GetNodes() {
			if n.Status.GetState() == musterv1.NodeStatus_READY {
				ready++
			}
		}
		if ready >= c.workers {
			return nil
		}
		select {
		case <-ctx.Done():
			c.log.Warn("workers have not joined yet", zap.Int("joined", ready), zap.Int("workers", c.workers), zap.NamedError("last_error", err))
			return nil
		case err := <-c.failed:
			return err
		case <-time.After(attempts.Next()):
		}
	}
}
