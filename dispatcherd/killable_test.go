package dispatcherd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/internal/kv"
)

// killable is one process's way to the store, which can be cut.
type killable struct {
	kv.KV
	dead     atomic.Bool
	mu       sync.Mutex
	sessions []kv.Session
	// gone is closed when the way is cut, and new when it is whole again.
	gone chan struct{}
}

var errDead = fmt.Errorf("cut off: %w", kv.ErrUnavailable)

func newKillable(space kv.KV) *killable { return &killable{KV: space, gone: make(chan struct{})} }

func (m *killable) kill() { m.cut(true) }

// cut cuts the way, or makes it whole again.
func (m *killable) cut(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch was := m.dead.Swap(yes); {
	case yes && !was:
		close(m.gone)
	case !yes && was:
		m.gone = make(chan struct{})
	}
}

// until returns a context that ends when the way is cut.
func (m *killable) until(ctx context.Context) (context.Context, context.CancelFunc) {
	m.mu.Lock()
	gone := m.gone
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// bury ends the sessions of the dead.
func (m *killable) bury() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		_ = s.Close(context.Background())
	}
}

func (m *killable) Get(ctx context.Context, key string) (kv.Pair, error) {
	if m.dead.Load() {
		return kv.Pair{}, errDead
	}
	return m.KV.Get(ctx, key)
}

func (m *killable) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if m.dead.Load() {
		return nil, 0, errDead
	}
	whole, cancel := m.until(ctx)
	defer cancel()
	pairs, index, err := m.KV.List(whole, prefix, opt)
	if err != nil && ctx.Err() == nil && whole.Err() != nil {
		err = errDead
	}
	return pairs, index, err
}

func (m *killable) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	return m.KV.Txn(ctx, ops)
}

func (m *killable) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	s, err := m.KV.NewSession(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = append(m.sessions, s)
	return killableSession{s, m}, nil
}

// killableSession is a session whose end by its own process is not seen once the
// process is dead.
type killableSession struct {
	kv.Session
	m *killable
}

func (s killableSession) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if s.m.dead.Load() {
		return false, errDead
	}
	return s.Session.Acquire(ctx, key, value)
}

func (s killableSession) Release(ctx context.Context, key string) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Release(ctx, key)
}

func (s killableSession) Close(ctx context.Context) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Close(ctx)
}
