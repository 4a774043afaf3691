package liveness

import (
	"container/heap"
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/store"
)

const (
	// confirmPause is the time between two attempts to confirm the ownership of the
	// shard. If it belongs to another replica, this one hears about it soon.
	confirmPause = 100 * time.Millisecond
	// retryPause is the first pause after a record that was not written, and
	// maxRetryPause the longest.
	retryPause    = 50 * time.Millisecond
	maxRetryPause = 2 * time.Second
	// idle is how long a tracker without deadlines waits.
	idle = time.Hour
)

// Run checks the shard's nodes and writes their records until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	attempts := backoff.New(retryPause, maxRetryPause)
	for ctx.Err() == nil {
		// A decision that cannot be written now may be wrong later. The only error is
		// that ctx has ended.
		if t.cfg.Store.WaitAvailable(ctx) != nil {
			return nil
		}
		owned, asked := t.ownership.confirm(ctx)
		if !owned {
			_ = backoff.Sleep(ctx, confirmPause)
			continue
		}
		if asked {
			t.recheckAll()
		}
		transitions, next := t.check(time.Now(), t.cfg.Store.Snapshot())
		if len(transitions) > 0 {
			if t.execute(ctx, transitions) {
				attempts.Reset()
			} else {
				_ = attempts.Wait(ctx)
			}
			continue
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-t.wake:
		case <-t.ownership.doubted:
		case <-timer.C:
		}
	}
	return nil
}

// check updates the nodes that are due, and decides which records must change. It
// returns when to check again.
func (t *Tracker) check(now time.Time, snap *store.Snapshot) ([]nodeTransition, time.Time) {
	factor := 1.0
	if t.overdue(now) {
		factor = t.cfg.Lag.Factor(now)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if since := t.cfg.Pauses.runningSince(now); since.After(t.resumed) {
		t.resumed = since
		for _, n := range t.nodes {
			n.life = n.life.afterPause(now, t.cfg.Timeouts)
			t.place(n)
		}
	}
	for len(t.due) > 0 && !t.due[0].due.After(now) {
		t.checkDeadline(t.due[0], now, factor)
	}
	var transitions []nodeTransition
	for _, id := range slices.Sorted(maps.Keys(t.changed)) {
		if transition, ok := t.decide(id, now, snap); ok {
			transitions = append(transitions, transition)
		}
	}
	clear(t.changed)
	if len(t.due) == 0 {
		return transitions, now.Add(idle)
	}
	return transitions, t.due[0].due
}

// checkDeadline updates a node whose deadline has passed, and places it again.
func (t *Tracker) checkDeadline(n *node, now time.Time, factor float64) {
	if !n.postponed.IsZero() && !now.Before(n.postponed) {
		n.postponed = time.Time{}
		t.touch(n)
		return
	}
	before := n.life.phase
	n.life = n.heard()
	if !n.life.deadline().After(now) && n.life.extended(factor, t.cfg.Timeouts).After(now) {
		t.placeAt(n, now.Add(lagPeriod))
		return
	}
	n.life = n.life.at(now, t.cfg.Timeouts)
	t.place(n)
	if n.conflict.message != "" && now.After(n.conflict.until) {
		n.conflict = nodeConflict{}
		t.mark(n.id)
	}
	if n.life.phase == before {
		return
	}
	t.mark(n.id)
	if n.session != nil {
		n.session.End(status.Errorf(codes.DeadlineExceeded, "node %s was %s", n.id, n.life.reason), nil)
		t.detach(n)
	}
}

// overdue reports whether there is a node that was not heard in time.
func (t *Tracker) overdue(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.due) > 0 && !t.due[0].due.After(now) && slices.ContainsFunc(t.due, func(n *node) bool {
		deadline := n.heard().deadline()
		return !deadline.IsZero() && !deadline.After(now)
	})
}

// recheck makes the next check compare a node's record.
func (t *Tracker) recheck(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mark(id)
}

func (t *Tracker) recheckAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.nodes {
		t.mark(id)
	}
}

// touch makes the next check look at a node whose liveness or description changed.
func (t *Tracker) touch(n *node) {
	t.place(n)
	t.mark(n.id)
}

func (t *Tracker) mark(id string) {
	t.changed[id] = struct{}{}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// place puts a node where its deadline belongs in the heap.
func (t *Tracker) place(n *node) { t.placeAt(n, n.deadline()) }

func (t *Tracker) placeAt(n *node, due time.Time) {
	n.due = due
	switch {
	case n.due.IsZero() && n.place >= 0:
		heap.Remove(&t.due, n.place)
	case n.due.IsZero():
	case n.place >= 0:
		heap.Fix(&t.due, n.place)
	default:
		heap.Push(&t.due, n)
	}
}

func (t *Tracker) forget(n *node) {
	if n.place >= 0 {
		heap.Remove(&t.due, n.place)
	}
	delete(t.nodes, n.id)
}
