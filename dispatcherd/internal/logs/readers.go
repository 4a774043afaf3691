package logs

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxSubscriptions limits how many readers one worker serves.
const maxSubscriptions = 256

// readers holds the subscriptions of a dispatcher. They are shared out fairly
// among the clients that apid reads for, on each node and on the whole dispatcher:
// a client may use what others leave free, and loses it when others need it.
type readers struct {
	limit int

	mu    sync.Mutex
	all   *pool
	nodes map[string]*pool
}

func newReaders(limit int) *readers {
	return &readers{limit: limit, all: newPool(limit), nodes: map[string]*pool{}}
}

// admit adds a subscription. If there is no space, it evicts the newest
// subscription of the client that has the most, provided that this client still
// has no fewer than the new subscription's client.
func (r *readers) admit(sub *subscription) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	node := r.nodes[sub.node]
	if node == nil {
		node = newPool(maxSubscriptions)
		r.nodes[sub.node] = node
	}
	victim, ok := node.victim(sub.client)
	if !ok {
		return node.full(sub.client, "node "+sub.node, "")
	}
	if victim != nil {
		r.evict(victim, node.full(victim.client, "node "+sub.node, ""))
	}
	// An eviction above made space here too.
	if victim, ok = r.all.victim(sub.client); !ok {
		r.drop(sub.node)
		return r.all.full(sub.client, "the dispatcher", " (--log-readers of dispatcherd)")
	}
	if victim != nil {
		r.evict(victim, r.all.full(victim.client, "the dispatcher", " (--log-readers of dispatcherd)"))
	}
	node.add(sub)
	r.all.add(sub)
	return nil
}

// release removes a subscription that has ended. It does nothing if the
// subscription was evicted.
func (r *readers) release(sub *subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(sub)
}

func (r *readers) evict(sub *subscription, cause error) {
	r.remove(sub)
	sub.abort(cause)
}

func (r *readers) remove(sub *subscription) {
	if node := r.nodes[sub.node]; node != nil && node.remove(sub) {
		r.all.remove(sub)
		r.drop(sub.node)
	}
}

// drop removes a node that has no subscriptions.
func (r *readers) drop(node string) {
	if p := r.nodes[node]; p != nil && p.size == 0 {
		delete(r.nodes, node)
	}
}

// pool is a set of subscriptions of limited size, by client.
type pool struct {
	limit, size int
	// clients holds each client's subscriptions, the oldest first.
	clients map[string][]*subscription
}

func newPool(limit int) *pool { return &pool{limit: limit, clients: map[string][]*subscription{}} }

func (p *pool) add(sub *subscription) {
	p.clients[sub.client] = append(p.clients[sub.client], sub)
	p.size++
}

func (p *pool) remove(sub *subscription) bool {
	subs := p.clients[sub.client]
	for i, s := range subs {
		if s != sub {
			continue
		}
		p.size--
		if len(subs) == 1 {
			delete(p.clients, sub.client)
			return true
		}
		p.clients[sub.client] = append(subs[:i:i], subs[i+1:]...)
		return true
	}
	return false
}

// victim returns the subscription to evict before a client gets one more, or nil
// if there is space. It returns false if the client already has its share.
func (p *pool) victim(client string) (*subscription, bool) {
	if p.size < p.limit {
		return nil, true
	}
	var most []*subscription
	for _, subs := range p.clients {
		if len(subs) > len(most) {
			most = subs
		}
	}
	if len(most) <= len(p.clients[client])+1 {
		return nil, false
	}
	return most[len(most)-1], true
}

// full returns the error for a client that has its share of a pool. The name is
// the pool's.
func (p *pool) full(client, name, setting string) error {
	reader := client
	if reader == "" {
		reader = "one client"
	}
	return status.Errorf(codes.ResourceExhausted,
		"%s serves %d log readers, the most that it may%s; %s has its share of them, %d, with %d clients reading: close other log streams, or try again later",
		name, p.size, setting, reader, len(p.clients[client]), len(p.clients))
}
