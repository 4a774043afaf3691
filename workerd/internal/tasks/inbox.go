package tasks

import "sync"

// event is something that happened to a task. Its apply method runs in the
// goroutine that owns the task's state.
type event interface{ apply(t *task) }

// inbox queues a task's events and decides which goroutine owns the task's
// state. At most one goroutine owns it at a time; none does while there is
// nothing to do.
type inbox struct {
	mu sync.Mutex
	// first is the oldest event. There is rarely another one, so that most tasks never
	// need a slice.
	first event
	more  []event
	owned bool
}

// put queues an event. It returns true if no goroutine owns the task; the caller
// then owns it and must call take until take returns false.
func (b *inbox) put(e event) (acquired bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == nil {
		b.first = e
	} else {
		b.more = append(b.more, e)
	}
	acquired = !b.owned
	b.owned = true
	return acquired
}

// take returns the queued events, the oldest one first. If there are none it returns
// false, and the caller no longer owns the task.
func (b *inbox) take() (first event, more []event, owned bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first, more = b.first, b.more
	b.first, b.more = nil, nil
	b.owned = first != nil
	return first, more, b.owned
}

// release gives up ownership and leaves the events queued.
func (b *inbox) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owned = false
}
