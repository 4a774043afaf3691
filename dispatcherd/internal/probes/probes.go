// Package probes has connected workers try whether services are reached on networks, and
// list and remove their volumes.
//
// A [Broker] serves apid. A [Worker] is a connected worker as the broker sees it. A worker
// tries one service at a time.
package probes

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/internal/state"
)

const (
	// answerTimeout bounds the time until a worker has answered.
	answerTimeout = 30 * time.Second
	// mostAtOnce is how many workers of a dispatcher try something at the same time.
	mostAtOnce = 32
	// mostChecks and mostText bound what a worker may say: the number of attempts, and the
	// bytes of each text.
	mostChecks = 2_000
	mostText   = 512
	// mostVolumes and mostVolumeBytes bound the volumes that a worker may list.
	mostVolumes     = 5_000
	mostVolumeBytes = 2 << 20
)

// Sender sends messages to a worker, in order. Send does not block.
type Sender interface {
	Send(*dispatcherv1.SessionResponse)
}

// Broker passes what must be tried to workers.
type Broker struct {
	dispatcherv1.UnimplementedProbeServiceServer

	calls *calls.Group
	open  *semaphore.Weighted

	mu      sync.Mutex
	workers map[string]*Worker
}

// NewBroker returns a broker without workers.
func NewBroker(c *calls.Group) *Broker {
	return &Broker{calls: c, open: semaphore.NewWeighted(mostAtOnce), workers: map[string]*Worker{}}
}

// Probe has a node try whether a service is reached.
func (b *Broker) Probe(ctx context.Context, req *dispatcherv1.ProbeRequest) (*dispatcherv1.ProbeResponse, error) {
	if !b.calls.Join() {
		return nil, calls.ErrStopping
	}
	defer b.calls.Leave()
	err := bounds.CheckID("node_id", req.NodeId)
	if req.Volumes == nil {
		err = errors.Join(err, bounds.CheckID("network_id", req.NetworkId), bounds.CheckID("service_id", req.ServiceId))
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !b.open.TryAcquire(1) {
		return nil, status.Errorf(codes.ResourceExhausted, "%d nodes are asked something at the moment; try again soon", mostAtOnce)
	}
	defer b.open.Release(1)
	b.mu.Lock()
	w := b.workers[req.NodeId]
	b.mu.Unlock()
	if w == nil {
		return nil, notConnected(req.NodeId)
	}
	result, id, err := w.begin(req.Volumes != nil)
	if err != nil {
		return nil, err
	}
	defer w.end(id)
	w.sender.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_ProbeOrder{ProbeOrder: &dispatcherv1.ProbeOrder{
		ProbeId: id, NetworkId: req.NetworkId, ServiceId: req.ServiceId, Volumes: req.Volumes,
	}}})
	limit := time.NewTimer(answerTimeout)
	defer limit.Stop()
	select {
	case r, ok := <-result:
		switch {
		case !ok:
			return nil, notConnected(req.NodeId)
		case r.Error != "":
			return nil, status.Errorf(codes.FailedPrecondition, "node %s cannot test the network: %s", req.NodeId, r.Error)
		}
		return &dispatcherv1.ProbeResponse{Response: r.Response, Volumes: r.Volumes}, nil
	case <-limit.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "node %s did not answer within %s", req.NodeId, answerTimeout)
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-b.calls.Stopping():
		return nil, calls.ErrStopping
	}
}

func notConnected(node string) error {
	return status.Errorf(codes.Unavailable, "node %s is not connected to this dispatcher", node)
}

// Worker is one session of a worker.
type Worker struct {
	broker *Broker
	sender Sender

	mu     sync.Mutex
	node   string
	able   Abilities
	closed bool
	// open are the open probes by id, which receive their results, and testing is the id of
	// the one that tests a network.
	open    map[string]chan *dispatcherv1.ProbeResult
	testing string
}

// Abilities say what a worker answers.
type Abilities struct{ Networks, Volumes bool }

// NewWorker returns a worker that is not connected yet.
func (b *Broker) NewWorker(sender Sender) *Worker {
	return &Worker{broker: b, sender: sender, open: map[string]chan *dispatcherv1.ProbeResult{}}
}

// Connect makes the worker its node's. It replaces an earlier session of the node. Able
// says what the worker answers.
func (w *Worker) Connect(node string, able Abilities) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.node, w.able = node, able
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	w.broker.workers[node] = w
}

// Close ends the open probes.
func (w *Worker) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, result := range w.open {
		close(result)
	}
	clear(w.open)
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	if w.broker.workers[w.node] == w {
		delete(w.broker.workers, w.node)
	}
}

// Deliver passes a result on, unless its caller is gone.
func (w *Worker) Deliver(r *dispatcherv1.ProbeResult) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if result := w.open[r.ProbeId]; result != nil {
		bound(r)
		result <- r
		w.forget(r.ProbeId)
	}
}

// bound limits a result, whatever the worker says.
func bound(r *dispatcherv1.ProbeResult) {
	r.Error = bounds.Clip(r.Error, mostText)
	if v := r.Volumes; v != nil {
		v.Error = bounds.Clip(v.Error, mostText)
		for i, size := 0, 0; i < len(v.Volumes); i++ {
			if size += proto.Size(v.Volumes[i]); i >= mostVolumes || size > mostVolumeBytes {
				v.Volumes = v.Volumes[:i]
			}
		}
	}
	if r.Response == nil {
		return
	}
	r.Response.Source = bounds.Clip(r.Response.Source, mostText)
	if checks := r.Response.Checks; len(checks) > mostChecks {
		r.Response.Checks = checks[:mostChecks]
	}
	for _, c := range r.Response.GetChecks() {
		for _, text := range []*string{&c.Target, &c.Message, &c.TaskId, &c.NodeId} {
			*text = bounds.Clip(*text, mostText)
		}
		if c.GetTook() != nil && c.Took.CheckValid() != nil {
			c.Took = nil
		}
	}
}

func (w *Worker) begin(volumes bool) (result <-chan *dispatcherv1.ProbeResult, id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		return nil, "", notConnected(w.node)
	case volumes && !w.able.Volumes:
		return nil, "", status.Errorf(codes.Unimplemented, "the worker of node %s is of a version that does not list volumes: upgrade it", w.node)
	case !volumes && !w.able.Networks:
		return nil, "", status.Errorf(codes.Unimplemented, "the worker of node %s is of a version that cannot test networks: upgrade it", w.node)
	case !volumes && w.testing != "":
		return nil, "", status.Errorf(codes.ResourceExhausted, "node %s is testing a network at the moment; try again soon", w.node)
	}
	id, ended := state.NewID(), make(chan *dispatcherv1.ProbeResult, 1)
	w.open[id] = ended
	if !volumes {
		w.testing = id
	}
	return ended, id, nil
}

// end lets the worker try something else. Its late result is dropped.
func (w *Worker) end(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(id)
}

// forget requires that the lock is held.
func (w *Worker) forget(id string) {
	delete(w.open, id)
	if w.testing == id {
		w.testing = ""
	}
}
