package store

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// commitResult is the outcome of a transaction.
type commitResult uint8

const (
	resultFailed commitResult = iota
	resultApplied
	// resultUnseen means that it was applied, but its results were lost.
	resultUnseen
	// resultConflict means that it was not applied and never will be.
	resultConflict
)

// deliver sends a transaction, repeatedly if needed, until its outcome is known or no
// caller waits for it. pairs are the results of an applied transaction; err is the
// error of a failed one.
func (c *committer) deliver(ctx context.Context, b *batch, p *plan, w writer) (end commitResult, pairs []kv.Pair, err error) {
	retry := backoff.New(failurePause, maxFailurePause)
	for attempt := 0; ; attempt++ {
		pairs, err := c.s.txn(ctx, p.ops)
		conflict := errors.Is(err, kv.ErrConflict)
		switch {
		case err == nil:
			return resultApplied, pairs, nil
		case conflict && attempt == 0:
			return resultConflict, nil, nil
		case !conflict && !unavailable(err):
			c.s.log.Warn("failed to commit", zap.Error(err))
			if attempt > 0 {
				err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
			}
			return resultFailed, nil, err
		}
		// The transaction may have been applied, or may still arrive, and a conflict
		// may be one with itself. The heads tell, once one of them has changed.
		o, err := c.ask(ctx, b, p, w, err)
		switch {
		case err != nil:
			return resultFailed, nil, err
		case o == outcomeApplied:
			return resultUnseen, nil, nil
		case conflict:
			return resultConflict, nil, nil
		}
		// It has not been applied so far. Sending it again is safe: both compare the
		// same heads, so only one of them can be applied.
		c.s.metrics.retries.Inc()
		_ = retry.Wait(ctx)
	}
}

// ask reads the outcome of a transaction that failed with cause, and retries until it
// gets an answer. Its error says that the outcome cannot be known.
func (c *committer) ask(ctx context.Context, b *batch, p *plan, w writer, cause error) (outcome, error) {
	retry := backoff.New(failurePause, maxFailurePause)
	for {
		c.s.log.Debug("outcome of commit unknown", zap.Uint64("commit", w.commit), zap.Error(cause))
		switch {
		case ctx.Err() != nil:
			return outcomeUnknown, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
		case b.abandoned():
			// If it is applied later, the next commit to one of its heads will
			// conflict.
			return outcomeUnknown, ErrOutcomeUnknown
		}
		o, err := c.resolve(ctx, p, w)
		switch {
		case err == nil && o == outcomeUnknown:
			return outcomeUnknown, fmt.Errorf("%w: %w", ErrOutcomeUnknown, kv.ErrUnavailable)
		case err == nil:
			return o, nil
		case !unavailable(err):
			return outcomeUnknown, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		cause = err
		_ = retry.Wait(ctx)
	}
}

// resolve finds the outcome of a transaction in the heads that it writes. outcomeOpen
// means that it has not been applied, but may be while the heads are unchanged.
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
		// It writes nothing, so the outcome makes no difference.
		return outcomeOpen, nil
	}
	pairs, err := c.s.txn(ctx, ops)
	if err != nil {
		return outcomeUnknown, err
	}
	// It was applied to all heads or to none, so one definite answer is enough. A head
	// that does not exist was never written.
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
