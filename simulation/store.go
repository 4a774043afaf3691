package simulation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// distant is a store that is some way off: calls take their time there and back,
// and a process hears of the end of its session later than the others.
type distant struct {
	kv.KV
	latency time.Duration
	// deaf is how much later.
	deaf time.Duration
	// ears waits for what waits for the ends of sessions.
	ears *sync.WaitGroup
}

func (d *distant) wait(ctx context.Context) error {
	if d.latency == 0 {
		return nil
	}
	timer := time.NewTimer(d.latency / 2)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		// What was asked for may have been done.
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, context.Cause(ctx))
	}
}

func (d *distant) Get(ctx context.Context, key string) (kv.Pair, error) {
	if err := d.wait(ctx); err != nil {
		return kv.Pair{}, err
	}
	p, err := d.KV.Get(ctx, key)
	if werr := d.wait(ctx); werr != nil {
		return kv.Pair{}, werr
	}
	return p, err
}

func (d *distant) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if err := d.wait(ctx); err != nil {
		return nil, 0, err
	}
	pairs, index, err := d.KV.List(ctx, prefix, opt)
	if werr := d.wait(ctx); werr != nil {
		return nil, 0, werr
	}
	return pairs, index, err
}

func (d *distant) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if err := d.wait(ctx); err != nil {
		return nil, err
	}
	pairs, err := d.KV.Txn(ctx, ops)
	if werr := d.wait(ctx); werr != nil {
		return nil, werr
	}
	return pairs, err
}

func (d *distant) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	inner, err := d.KV.NewSession(ctx, cfg)
	if err != nil || d.deaf == 0 {
		return inner, err
	}
	s := &deafSession{Session: inner, lost: make(chan struct{}), closed: make(chan struct{})}
	d.ears.Go(func() {
		defer close(s.lost)
		<-inner.Lost()
		timer := time.NewTimer(d.deaf)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.closed:
		}
	})
	return s, nil
}

// deafSession hears late that it has ended, unless it ended itself.
type deafSession struct {
	kv.Session
	lost, closed chan struct{}
	once         sync.Once
}

func (s *deafSession) Lost() <-chan struct{} { return s.lost }

func (s *deafSession) Close(ctx context.Context) error {
	s.once.Do(func() { close(s.closed) })
	return s.Session.Close(ctx)
}
