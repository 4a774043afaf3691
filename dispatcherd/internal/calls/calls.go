// Package calls tracks the calls that a dispatcher serves, so that it can end
// them and wait for them.
package calls

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrStopping ends the calls of a dispatcher that stops.
var ErrStopping = status.Error(codes.Unavailable, "this dispatcher is stopping; try another")

// Group is a set of calls and of the goroutines that work for them.
type Group struct {
	stopping chan struct{}
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// NewGroup returns a group without calls.
func NewGroup() *Group { return &Group{stopping: make(chan struct{})} }

// Join adds a call. It returns false if the group is closed. A call that has
// joined must call Leave.
func (g *Group) Join() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	return true
}

// Leave removes a call.
func (g *Group) Leave() { g.wg.Done() }

// Go runs f in a goroutine of the group. Only a call that has joined, or another
// goroutine of the group, may use it.
func (g *Group) Go(f func()) { g.wg.Go(f) }

// Stopping returns a channel that is closed when all calls must end.
func (g *Group) Stopping() <-chan struct{} { return g.stopping }

// Close ends all calls and waits for them and their goroutines. It must be called
// only once.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	close(g.stopping)
	g.mu.Unlock()
	g.wg.Wait()
}
