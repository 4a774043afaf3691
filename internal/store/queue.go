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
	// ErrOutcomeUnknown says that an update may have been applied, or may still be
	// applied: the kv did not answer before the context ended. Read the records and
	// decide again.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrClosed says that Run of the store has returned.
	ErrClosed = errors.New("store closed")
)

// group holds the updates of one call of UpdateAll.
//
// Its lock is held while one of its functions runs. A caller that gives up takes the
// lock first, so that no function runs after Update has returned.
type group struct {
	mu        sync.Mutex
	abandoned bool
	left      int
	requests  []request
	done      chan struct{} // closed when all updates have their result
	// heavy is the cost of the update that was run last, if it wrote many records. Only
	// the committer uses it.
	heavy cost
}

// request is one update. The group's lock guards its fields.
type request struct {
	group *group
	fn    func(*Tx) error
	// sent is set while the update is in a transaction whose outcome is not known.
	sent     bool
	finished bool
	err      error
	// firstWrite is the location of the first write in the last run of fn. added is the
	// cost of that run if it wrote many records. ran is set after the first run. Only
	// the committer uses these fields.
	firstWrite location
	added      cost
	ran        bool
}

// heavyRecords is the number of records from which an update counts as heavy. A heavy
// update takes long to run, and whether it fits into a transaction hardly depends on
// the pages of other updates.
const heavyRecords = 32

// weigh records the cost of a run that wrote the given number of records.
func (r *request) weigh(records int, added cost) {
	if records < heavyRecords {
		added = cost{}
	}
	r.ran, r.added, r.group.heavy = true, added, added
}

// weight estimates the cost of the update; it is 0 unless the update is heavy. Updates of
// one group are assumed to have the same cost.
func (r *request) weight() cost {
	if r.ran {
		return r.added
	}
	return r.group.heavy
}

// location is the position of a record, by which updates are sorted.
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

// wait waits until all updates have a result. When ctx ends, it gives up the others.
// outage returns an error if the kv is unavailable.
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

// run runs f unless the caller has given up, and reports whether f ran.
func (r *request) run(f func()) bool {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	if r.group.abandoned {
		return false
	}
	f()
	return true
}

// setSent records whether the update is in a transaction without a known outcome. It
// reports false if the caller has given up.
func (r *request) setSent(sent bool) bool {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	r.sent = sent
	return !r.group.abandoned
}

// finish sets the result of the update.
func (r *request) finish(err error) {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	r.finished, r.err = true, err
	if g.left--; g.left == 0 {
		close(g.done)
	}
}

// queue holds new updates for the committer.
type queue struct {
	mu      sync.Mutex
	waiting []*request
	groups  int // of the waiting updates
	closed  bool
	ready   chan struct{} // holds a token if updates may be waiting
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

// takeAll removes and returns all waiting updates.
func (q *queue) takeAll() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.waiting
	q.waiting, q.groups = nil, 0
	return out
}

// callers returns the number of waiting calls.
func (q *queue) callers() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.groups
}

// close makes the queue refuse further updates, and returns the waiting ones.
func (q *queue) close() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	out := q.waiting
	q.waiting = nil
	return out
}

// tooLarge is the error of a single update that exceeds the limits of a transaction.
func tooLarge(err error) error {
	return fmt.Errorf("update is too large for one transaction: %w", err)
}
