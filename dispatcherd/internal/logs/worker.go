package logs

import (
	"sync"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// Sender sends messages to a worker, in order. Send does not block.
type Sender interface {
	Send(*dispatcherv1.SessionResponse)
}

// Worker is one session of a worker.
type Worker struct {
	broker *Broker
	sender Sender

	mu            sync.Mutex
	node          string
	subscriptions map[string]*subscription
	closed        bool
}

// NewWorker returns a worker that readers cannot reach before it is connected.
func (b *Broker) NewWorker(sender Sender) *Worker {
	return &Worker{broker: b, sender: sender, subscriptions: map[string]*subscription{}}
}

// Connect lets readers reach the worker as its node. It replaces an earlier
// session of the node.
func (w *Worker) Connect(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.node = node
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	w.broker.workers[node] = w
}

// Close ends the worker's subscriptions.
func (w *Worker) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, sub := range w.subscriptions {
		sub.end(notConnected(w.node))
	}
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	if w.broker.workers[w.node] == w {
		delete(w.broker.workers, w.node)
	}
}

// Deliver passes the worker's lines to their reader. It drops them if the reader
// is gone: the worker was told to stop, or will be.
func (w *Worker) Deliver(data *dispatcherv1.LogData) {
	w.mu.Lock()
	sub := w.subscriptions[data.SubscriptionId]
	if sub != nil && data.End {
		delete(w.subscriptions, sub.id)
	}
	w.mu.Unlock()
	if sub != nil {
		sub.put(data.Messages, data.End)
	}
}

func (w *Worker) add(sub *subscription) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return notConnected(sub.node)
	}
	w.subscriptions[sub.id] = sub
	return nil
}

// remove returns true if the worker still has to be told that the reader is gone.
func (w *Worker) remove(sub *subscription) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, open := w.subscriptions[sub.id]
	delete(w.subscriptions, sub.id)
	return open && !w.closed
}
