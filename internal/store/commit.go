package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// Bounds of the backoff after conflicts and after failures.
const (
	conflictPause    = 500 * time.Microsecond
	maxConflictPause = 32 * time.Millisecond
	failurePause     = 10 * time.Millisecond
	maxFailurePause  = time.Second
)

// callTimeout bounds a non-blocking call of the kv.
const callTimeout = 15 * time.Second

// inFlightCommit is a commit that has been sent and has no result yet.
type inFlightCommit struct {
	writer writer
	done   chan struct{}
}

// committer commits updates, one transaction after another.
type committer struct {
	s       *Store
	backlog backlog
	commits uint64 // number of the last one
	// conflicted is set if the last commit conflicted. conflictBackoff delays the
	// commits after further conflicts.
	conflicted      bool
	conflictBackoff *backoff.Backoff
	// lastCallers is the number of callers after the last commit: those whose updates it
	// contained, and those that were waiting. lastDuration is the time it took.
	lastCallers  int
	lastDuration time.Duration
}

func newCommitter(s *Store) *committer {
	return &committer{s: s, conflictBackoff: backoff.New(conflictPause, maxConflictPause)}
}

// run commits queued updates until ctx ends. The remaining ones then get ErrClosed.
func (c *committer) run(ctx context.Context) {
	defer func() {
		for _, r := range append(c.backlog.all(), c.s.queue.close()...) {
			r.finish(ErrClosed)
		}
	}()
	if c.s.Ready(ctx) != nil {
		return
	}
	for {
		if c.backlog.empty() {
			select {
			case <-ctx.Done():
				return
			case <-c.s.queue.ready:
			}
			c.waitForCallers(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		c.backlog.add(c.s.queue.takeAll())
		c.commit(ctx)
	}
}

// maxCallerWait bounds how long a commit waits for callers.
const maxCallerWait = 10 * time.Millisecond

// waitForCallers gives the callers of the last commit a moment to queue their next
// updates, because most do so at once. Otherwise they would alternate with the callers
// that waited during the last commit, and need twice as many transactions. The wait is
// half as long as the last commit. A single caller is committed immediately.
func (c *committer) waitForCallers(ctx context.Context) {
	if c.lastCallers < 2 {
		return
	}
	t := time.NewTimer(min(c.lastDuration/2, maxCallerWait))
	defer t.Stop()
	for c.s.queue.callers() < c.lastCallers {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-c.s.queue.ready:
		}
	}
}

// commit commits a batch of as many updates as fit into one transaction. If the batch is
// too large it tries half as many updates, and a single one without merging its pages.
// Updates without a result return to the backlog.
func (c *committer) commit(ctx context.Context) {
	limit := math.MaxInt
	merge := true
	for {
		b := newBatch(c.s)
		c.backlog.fill(b, limit)
		w := writer{id: c.s.id, commit: c.commits + 1}
		p := b.seal(c.s.prefix, w, merge)
		if len(p.ops) == 0 {
			b.finish()
			return
		}
		if err := p.check(b.limits); err != nil {
			switch {
			case len(b.members) > 1:
				limit = len(b.members) / 2
			case merge:
				merge = false
			default:
				if b.members[0].err == nil {
					b.members[0].err = tooLarge(err)
				}
				b.finish()
				return
			}
			c.backlog.putBack(b)
			continue
		}
		if !b.setSent(true) {
			// A caller has given up, so its update must not be applied.
			c.backlog.putBack(b)
			continue
		}
		c.commits++
		c.send(ctx, b, p, w)
		return
	}
}

// setSent marks the members as sent. If a caller has given up, it marks none and
// reports false.
func (b *batch) setSent(sent bool) bool {
	for i, m := range b.members {
		if !m.req.setSent(sent) && sent {
			for _, m := range b.members[:i+1] {
				m.req.setSent(false)
			}
			return false
		}
	}
	return true
}

// finish sets the results of the members.
func (b *batch) finish() {
	for _, m := range b.members {
		m.req.finish(m.err)
	}
}

func (b *batch) fail(err error) {
	for _, m := range b.members {
		m.req.finish(err)
	}
}

// callers returns the number of callers of the updates.
func (b *batch) callers() int {
	groups := map[*group]struct{}{}
	for _, m := range b.members {
		groups[m.req.group] = struct{}{}
	}
	return len(groups)
}

// abandoned reports whether all callers have given up.
func (b *batch) abandoned() bool {
	for _, m := range b.members {
		if m.req.run(func() {}) {
			return false
		}
	}
	return true
}

// send sends a transaction and handles its result.
func (c *committer) send(ctx context.Context, b *batch, p *plan, w writer) {
	start := time.Now()
	announceDone := c.s.announceCommit(p, w)
	end, pairs, err := c.deliver(ctx, b, p, w)
	if end == resultApplied && p.writes {
		c.s.installCommit(p, pairs)
	}
	announceDone()
	switch end {
	case resultApplied, resultUnseen:
		c.conflicted = false
		c.conflictBackoff.Reset()
		if end == resultUnseen {
			c.catchUp(ctx, b, p)
		}
		c.lastDuration = time.Since(start)
		c.s.metrics.committed(c.lastDuration, p, len(b.members))
		c.lastCallers = b.callers() + c.s.queue.callers()
		b.finish()
	case resultConflict:
		c.s.metrics.conflicts.Inc()
		b.setSent(false)
		c.catchUp(ctx, b, p)
		if c.conflicted {
			_ = c.conflictBackoff.Wait(ctx)
		}
		c.conflicted = true
		c.backlog.putBack(b)
	case resultFailed:
		b.fail(fmt.Errorf("commit: %w", err))
	}
}

// catchUp reads the tables of the plan from the kv until that succeeds or no caller
// waits for the batch.
func (c *committer) catchUp(ctx context.Context, b *batch, p *plan) {
	for i := range p.tables {
		f := c.s.tables[i]
		retry := backoff.New(failurePause, maxFailurePause)
		for ctx.Err() == nil && !b.abandoned() {
			err := f.refresh(ctx, nil)
			if err == nil {
				break
			}
			c.s.log.Debug("failed to read table again; retrying", zap.String("table", f.def.Name()), zap.Error(err))
			_ = retry.Wait(ctx)
		}
	}
}

// unavailable reports whether a call with this error may have been applied, and may
// succeed if it is repeated.
func unavailable(err error) bool {
	return errors.Is(err, kv.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
