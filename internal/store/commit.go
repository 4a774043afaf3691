package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Bounds of the pause after a conflict and after a failure.
const (
	conflictPause    = 500 * time.Microsecond
	maxConflictPause = 32 * time.Millisecond
	failurePause     = 10 * time.Millisecond
	maxFailurePause  = time.Second
)

// callTimeout bounds a call of the kv that should answer at once.
const callTimeout = 15 * time.Second

// flight is a commit that is on its way.
type flight struct {
	writer writer
	done   chan struct{}
}

// committer commits updates, one transaction after another.
type committer struct {
	s       *Store
	line    line
	commits uint64 // number of the last one
	// conflicts and failures count those since the last success.
	conflicts, failures int
}

// run commits what is queued until ctx ends, and then refuses what is left.
func (c *committer) run(ctx context.Context) {
	defer func() {
		for _, r := range append(c.line.all(), c.s.queue.close()...) {
			r.finish(ErrClosed)
		}
	}()
	if c.s.Ready(ctx) != nil {
		return
	}
	for {
		if c.line.empty() {
			select {
			case <-ctx.Done():
				return
			case <-c.s.queue.ready:
			}
		}
		if ctx.Err() != nil {
			return
		}
		c.line.add(c.s.queue.take())
		c.commit(ctx)
	}
}

// commit makes a batch of as many updates as fit into one transaction, and
// commits it. Updates that have no result then are in the line again.
func (c *committer) commit(ctx context.Context) {
	limit := math.MaxInt
	merge := true
	for {
		b := newBatch(c.s)
		c.line.fill(b, limit)
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
			c.line.putBack(b)
			continue
		}
		if !b.setSent(true) {
			// Somebody has given up, and must not see it applied.
			c.line.putBack(b)
			continue
		}
		c.commits++
		c.send(ctx, b, p, w)
		return
	}
}

// setSent marks the members; it reports false, with none marked, if one of them
// has been given up.
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

// finish gives the members their results.
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

// abandoned reports whether nobody waits for the batch any more.
func (b *batch) abandoned() bool {
	for _, m := range b.members {
		if m.req.run(func() {}) {
			return false
		}
	}
	return true
}

// send sends a transaction until it is known what became of it.
func (c *committer) send(ctx context.Context, b *batch, p *plan, w writer) {
	s := c.s
	land := s.takeOff(p, w)
	start := time.Now()
	pairs, err := s.txn(ctx, p.ops)
	for attempt := 0; err != nil && !errors.Is(err, kv.ErrConflict); attempt++ {
		var o outcome
		switch {
		case ctx.Err() != nil:
			land()
			b.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed))
			return
		case !unavailable(err):
			// Repeating it will not help.
			land()
			s.log.Warn("commit refused", zap.Error(err))
			if attempt > 0 {
				err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
			}
			b.fail(fmt.Errorf("commit: %w", err))
			return
		case b.abandoned():
			// It may be applied still. If so, the next commit to one of its
			// heads will conflict.
			land()
			b.fail(ErrOutcomeUnknown)
			return
		}
		s.log.Debug("outcome of commit unknown", zap.Uint64("commit", w.commit), zap.Error(err))
		pause(ctx, failurePause, maxFailurePause, attempt)
		o, err = c.resolve(ctx, p, w)
		if err != nil {
			continue
		}
		switch o {
		case outcomeApplied:
			land()
			c.catchUp(ctx, b, p)
			return
		case outcomeUnknown:
			land()
			b.fail(fmt.Errorf("commit: %w: %w", ErrOutcomeUnknown, kv.ErrUnavailable))
			return
		}
		// Not applied as yet. The same transaction again: only one of the two
		// can be applied, because both compare the same heads.
		pairs, err = s.txn(ctx, p.ops)
		if errors.Is(err, kv.ErrConflict) {
			// A head has moved: by ours, if it came through after all, or by
			// another's. Now it can be told for sure.
			if o, err = c.resolve(ctx, p, w); err != nil {
				continue
			}
			if o == outcomeApplied {
				land()
				c.catchUp(ctx, b, p)
				return
			}
			if o == outcomeUnknown {
				land()
				b.fail(fmt.Errorf("commit: %w: %w", ErrOutcomeUnknown, kv.ErrUnavailable))
				return
			}
			err = kv.ErrConflict
		}
	}
	if err == nil {
		c.conflicts = 0
		if p.writes {
			s.installCommit(p, pairs)
		}
		land()
		s.metrics.committed(time.Since(start), p, len(b.members))
		b.finish()
		return
	}
	land()
	c.conflict(ctx, b, p)
}

// conflict reads what another process has written, and gives the members back
// to be run again.
func (c *committer) conflict(ctx context.Context, b *batch, p *plan) {
	c.s.metrics.conflicts.Inc()
	b.setSent(false)
	c.refresh(ctx, p)
	if c.conflicts > 0 {
		pause(ctx, conflictPause, maxConflictPause, c.conflicts-1)
	}
	c.conflicts++
	c.line.putBack(b)
}

// refresh reads the tables of a plan. If it fails, the next commit conflicts
// again: so it is repeated here only in part.
func (c *committer) refresh(ctx context.Context, p *plan) {
	for i := range p.tables {
		if err := c.s.tables[i].refresh(ctx, nil); err != nil {
			c.s.log.Debug("refresh after conflict failed", zap.String("table", c.s.tables[i].def.Name()), zap.Error(err))
			pause(ctx, failurePause, maxFailurePause, c.failures)
			c.failures++
			return
		}
	}
	c.failures = 0
}

// catchUp ends a batch that was applied without our hearing of it: the snapshot
// must show it before the members have their results.
func (c *committer) catchUp(ctx context.Context, b *batch, p *plan) {
	for attempt := 0; ; attempt++ {
		err := c.catchUpOnce(ctx, p)
		if err == nil {
			b.finish()
			return
		}
		if ctx.Err() != nil || b.abandoned() {
			b.finish()
			return
		}
		pause(ctx, failurePause, maxFailurePause, attempt)
	}
}

func (c *committer) catchUpOnce(ctx context.Context, p *plan) error {
	for i := range p.tables {
		if err := c.s.tables[i].refresh(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// resolve asks the heads that the transaction was to write what became of it.
// outcomeOpen means that it has not been applied; it still may be, as long as
// the heads have not moved.
func (c *committer) resolve(ctx context.Context, p *plan, w writer) (outcome, error) {
	var ops []kv.Op
	base := map[string]uint64{}
	for _, ps := range p.shards {
		if ps.next != nil {
			ops = append(ops, kv.Op{Verb: kv.Get, Key: ps.key})
			base[ps.key] = ps.base.index
		}
	}
	if len(ops) == 0 {
		// It only checked: whether it was applied makes no difference.
		return outcomeOpen, nil
	}
	pairs, err := c.s.txn(ctx, ops)
	if err != nil {
		return outcomeUnknown, err
	}
	// It was applied to all heads or to none, so one that knows is enough. A
	// head that is not there was never written.
	result := outcomeUnknown
	if len(pairs) < len(ops) {
		result = outcomeOpen
	}
	for _, pair := range pairs {
		if pair.Index == base[pair.Key] {
			result = outcomeOpen
			continue
		}
		h, err := decodeHead(pair.Value)
		if err != nil {
			return outcomeUnknown, fmt.Errorf("key %s: %w", pair.Key, err)
		}
		switch o := h.outcome(w); o {
		case outcomeApplied:
			return o, nil
		case outcomeOpen:
			result = o
		}
	}
	return result, nil
}

// unavailable reports whether a call that ended so may succeed if repeated, and
// may have been applied.
func unavailable(err error) bool {
	return errors.Is(err, kv.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// pause waits for a random time that grows with the attempts, or until ctx ends.
func pause(ctx context.Context, base, most time.Duration, attempt int) {
	d := most
	if attempt < 16 {
		d = min(base<<attempt, most)
	}
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
