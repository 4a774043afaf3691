package serve

import (
	"context"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/workerd"
)

// leave removes all services of a cluster that is about to be forgotten, and
// waits until nothing is left of their tasks. It reports whether that is so.
func (c *devCluster) leave(ctx context.Context, workers []*workerd.Worker) bool {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	conn, err := daemon.Dialer(c.host.Credentials.Client)(c.listeners["apid"].Addr().String())
	if err != nil {
		c.log.Error("tasks may be left over", zap.Error(err))
		return false
	}
	defer func() { _ = conn.Close() }()
	client := musterv1.NewControlServiceClient(conn)
	attempts := backoff.New(50*time.Millisecond, 500*time.Millisecond)
	for {
		left, err := removeAll(ctx, client)
		held := 0
		for _, w := range workers {
			held += w.Held()
		}
		left = max(left, held)
		switch {
		case err == nil && left == 0:
			return true
		case ctx.Err() != nil:
			c.log.Error("tasks are left over", zap.Int("tasks", left), zap.Error(err))
			return false
		case err != nil:
			c.log.Warn("services cannot be removed yet", zap.Error(err))
		}
		// The next attempt reports that ctx has ended.
		_ = attempts.Wait(ctx)
	}
}

// removeAll removes services and returns how many tasks there still are.
func removeAll(ctx context.Context, client musterv1.ControlServiceClient) (int, error) {
	services, err := client.ListServices(ctx, &musterv1.ListServicesRequest{PageSize: 1000})
	if err != nil {
		return 0, err
	}
	for _, s := range services.Services {
		if _, err := client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
			return 0, err
		}
	}
	tasks, err := client.ListTasks(ctx, &musterv1.ListTasksRequest{PageSize: 1000})
	if err != nil {
		return 0, err
	}
	return len(tasks.Tasks), nil
}
