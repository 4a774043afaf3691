package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Errors of updates, besides those of package kv.
var (
	// ErrOutcomeUnknown says that an update may or may not have been applied,
	// now or in a moment: the kv did not answer before its context
	// ended. Read, and decide again.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrClosed says that the store's Run has returned.
	ErrClosed = errors.New("store closed")
)

// group is a number of updates that a caller waits for together.
//
// Its lock is held while one of its functions runs. Who gives up takes the lock
// first, so that no function runs once Update has returned.
type group struct {
	mu        sync.Mutex
	abandoned bool
	left      int
	requests  []request
	done      chan struct{} // closed when all updates have their result
	// heavy is what the last of the updates that was run added to its transaction if
	// that writes much. It belongs to the committer.
	heavy cost
}

// request is one update. Its fields are guarded by the group's lock.
type request struct {
	group *group
	fn    func(*Tx) error
	// sent says that the update is in a transaction of which it is not known
	// whether it was applied.
	sent     bool
	finished bool
	err      error
	// firstWrite is where its function first wrote when it was run last, and added what it
	// then added to its transaction if it writes much. ran says whether it was run.
	// They belong to the committer.
	firstWrite location
	added      cost
	ran        bool
}

// heavyRecords is from how many records on an update writes much: it is no matter of
// other updates' pages any more whether it fits into a transaction, and to try takes
// long.
const heavyRecords = 32

// weigh notes what the update has added to a transaction with so many records.
func (r *request) weigh(records int, added cost) {
	if records < heavyRecords {
		added = cost{}
	}
	r.ran, r.added, r.group.heavy = true, added, added
}

// weight returns what the update will add, as far as is known: 0 if it writes little.
// Those that were asked for together are taken to be alike.
func (r *request) weight() cost {
	if r.ran {
		return r.added
	}
	return r.group.heavy
}

// location is where a record is, for updates to be ordered by.
type location struct {
	table, shard int
	key          string
}

func (p location) compare(q location) int {
	return cmp.Or(cmp.Compare(p.table, q.table), cmp.Compare(p.shard, q.shard), strings.Compare(p.key, q.key))
}

func newGroup(fns []func(*Tx) error) *group {
	g := &group{left: len(fns), requests: make([]request, len(fns)), done: make(chan struct{})}
	for i, fn := range fns {
		g.requests[i] = request{group: g, fn: fn}
	}
	return g
}

// wait waits until all updates have their result, or gives up those that have
// none when ctx ends. trouble is what the store knows to be wrong with the kv.
func (g *group) wait(ctx context.Context, outage func() error) []error {
	select {
	case <-g.done:
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.abandoned = true
	errs := make([]error, len(g.requests))
	for i := range g.requests {
		r := &g.requests[i]
		if r.finished {
			errs[i] = r.err
			continue
		}
		err := context.Cause(ctx)
		if t := outage(); t != nil {
			err = fmt.Errorf("%w: %w", err, t)
		}
		if r.sent {
			err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		errs[i] = fmt.Errorf("update: %w", err)
	}
	return errs
}

// run runs f unless the update has been given up, and reports whether it has
// not.
func (r *request) run(f func()) bool {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	if r.group.abandoned {
		return false
	}
	f()
	return true
}

// setSent notes whether the update is in a transaction that is on its way. It
// reports false if the update has been given up.
func (r *request) setSent(sent bool) bool {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	r.sent = sent
	return !r.group.abandoned
}

// finish gives the update its result.
func (r *request) finish(err error) {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	r.finished, r.err = true, err
	if g.left--; g.left == 0 {
		close(g.done)
	}
}

// queue holds the updates to commit.
type queue struct {
	mu      sync.Mutex
	waiting []*request
	groups  int // that those who wait belong to
	closed  bool
	ready   chan struct{} // holds a token if there may be something
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

// add appends a group's updates, unless the queue is closed.
func (q *queue) add(g *group) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	q.groups++
	for i := range g.requests {
		q.waiting = append(q.waiting, &g.requests[i])
	}
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return nil
}

// takeAll returns all that waits.
func (q *queue) takeAll() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.waiting
	q.waiting, q.groups = nil, 0
	return out
}

// callers returns how many wait.
func (q *queue) callers() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.groups
}

// close refuses further updates, and returns those that wait.
func (q *queue) close() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	out := q.waiting
	q.waiting = nil
	return out
}

// tooLarge says that one update alone is over the limits.
func tooLarge(err error) error {
	return fmt.Errorf("update is too large for one transaction: %w", err)
}
