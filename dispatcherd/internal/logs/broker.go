// Package logs passes the output of tasks from workers to readers.
//
// A [Broker] serves the readers. A [Worker] is a connected worker as the broker
// sees it: the session sends the broker's requests and passes the worker's lines
// on. Each reader has a queue of bounded size, and the worker gets credit for the
// free space in it. A slow reader therefore delays neither the session nor other
// readers. Readers are shared out fairly among clients (readers.go).
//
// Lock order: Worker, then Broker or subscription.
package logs

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
)

// maxTasks limits how many tasks one reader asks for.
const maxTasks = 10_000

// Config configures a broker.
type Config struct {
	// QueueBytes is the size of a reader's queue.
	QueueBytes int
	// Readers is the greatest number of readers.
	Readers int
	Calls   *calls.Group
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Broker serves the readers of the output of connected workers' tasks.
type Broker struct {
	dispatcherv1.UnimplementedLogBrokerServiceServer

	queueBytes    int
	calls         *calls.Group
	readers       *readers
	subscriptions prometheus.Gauge

	mu      sync.Mutex
	workers map[string]*Worker
}

// NewBroker returns a broker without workers.
func NewBroker(cfg Config) (*Broker, error) {
	b := &Broker{
		queueBytes: cfg.QueueBytes, calls: cfg.Calls, readers: newReaders(cfg.Readers), workers: map[string]*Worker{},
		subscriptions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_dispatcher_log_subscriptions", Help: "Readers of tasks' output.",
		}),
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(b.subscriptions); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// SubscribeLogs streams the output of tasks of one node to apid.
func (b *Broker) SubscribeLogs(
	req *dispatcherv1.SubscribeLogsRequest, out grpc.ServerStreamingServer[dispatcherv1.SubscribeLogsResponse],
) error {
	if !b.calls.Join() {
		return calls.ErrStopping
	}
	defer b.calls.Leave()
	if err := bounds.CheckID("node_id", req.NodeId); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if n := len(req.TaskIds); n == 0 || n > maxTasks {
		return status.Errorf(codes.InvalidArgument, "task_ids holds %d ids, want 1 to %d", n, maxTasks)
	}
	w := b.worker(req.NodeId)
	if w == nil {
		return notConnected(req.NodeId)
	}
	sub := newSubscription(req.NodeId, req.Client, req.TaskIds, b.queueBytes)
	if err := b.readers.admit(sub); err != nil {
		return err
	}
	defer b.readers.release(sub)
	if err := w.add(sub); err != nil {
		return err
	}
	b.subscriptions.Inc()
	defer b.subscriptions.Dec()
	w.sender.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogRequest{LogRequest: &dispatcherv1.LogRequest{
		SubscriptionId: sub.id, TaskIds: req.TaskIds, Options: req.Options, Credit: uint64(sub.limit),
	}}})
	defer func() {
		if w.remove(sub) {
			w.sender.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCancel{
				LogCancel: &dispatcherv1.LogCancel{SubscriptionId: sub.id},
			}})
		}
	}()
	// The call must be able to end while apid receives nothing, and its end stops
	// a blocked Send. Another goroutine sends for that reason.
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	sent := make(chan error, 1)
	b.calls.Go(func() {
		sent <- sub.pump(ctx, out, func(credit uint64) {
			w.sender.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCredit{
				LogCredit: &dispatcherv1.LogCredit{SubscriptionId: sub.id, Credit: credit},
			}})
		})
	})
	select {
	case err := <-sent:
		return err
	case <-sub.aborted:
		return sub.err()
	case <-b.calls.Stopping():
		return calls.ErrStopping
	}
}

func (b *Broker) worker(node string) *Worker {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.workers[node]
}

func notConnected(node string) error {
	return status.Errorf(codes.Unavailable, "node %s is not connected to this dispatcher", node)
}
