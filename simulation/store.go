package simulation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// remoteKV is a kv with latency. In addition, its process learns late that its session has
// ended.
type remoteKV struct {
	kv.KV
	latency time.Duration
	// lossDelay is the delay between the end of a session and Lost.
	lossDelay time.Duration
	// waiters waits for the goroutines that delay Lost.
	waiters *sync.WaitGroup
}

func (d *remoteKV) wait(ctx context.Context) error {
	if d.latency == 0 {
		return nil
	}
	timer := time.NewTimer(d.latency / 2)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		// The call may have been applied.
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, context.Cause(ctx))
	}
}

func (d *remoteKV) Get(ctx context.Context, key string) (kv.Pair, error) {
	if err := d.wait(ctx); err != nil {
		return kv.Pair{}, err
	}
	p, err := d.KV.Get(ctx, key)
	if werr := d.wait(ctx); werr != nil {
		return kv.Pair{}, werr
	}
	return p, err
}

func (d *remoteKV) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if err := d.wait(ctx); err != nil {
		return nil, 0, err
	}
	pairs, index, err := d.KV.List(ctx, prefix, opt)
	if werr := d.wait(ctx); werr != nil {
		return nil, 0, werr
	}
	return pairs, index, err
}

func (d *remoteKV) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if err := d.wait(ctx); err != nil {
		return nil, err
	}
	pairs, err := d.KV.Txn(ctx, ops)
	if werr := d.wait(ctx); werr != nil {
		return nil, werr
	}
	return pairs, err
}

func (d *remoteKV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	inner, err := d.KV.NewSession(ctx, cfg)
	if err != nil || d.lossDelay == 0 {
		return inner, err
	}
	s := &lateSession{Session: inner, lost: make(chan struct{}), closed: make(chan struct{})}
	d.waiters.Go(func() {
		defer close(s.lost)
		<-inner.Lost()
		timer := time.NewTimer(d.lossDelay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.closed:
		}
	})
	return s, nil
}

// lateSession learns late that it has ended, unless it was closed.
type lateSession struct {
	kv.Session
	lost, closed chan struct{}
	once         sync.Once
}

func (s *lateSession) Lost() <-chan struct{} { return s.lost }

func (s *lateSession) Close(ctx context.Context) error {
	s.once.Do(func() { close(s.closed) })
	return s.Session.Close(ctx)
}
