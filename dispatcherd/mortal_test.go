package dispatcherd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/internal/kv"
)

// mortal is one process's way to the store, which can be cut.
type mortal struct {
	kv.KV
	dead     atomic.Bool
	mu       sync.Mutex
	sessions []kv.Session
}

var errDead = fmt.Errorf("cut off: %w", kv.ErrUnavailable)

func (m *mortal) kill() { m.dead.Store(true) }

// bury ends the sessions of the dead.
func (m *mortal) bury() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		_ = s.Close(context.Background())
	}
}

func (m *mortal) Get(ctx context.Context, key string) (kv.Pair, error) {
	if m.dead.Load() {
		return kv.Pair{}, errDead
	}
	return m.KV.Get(ctx, key)
}

func (m *mortal) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if m.dead.Load() {
		return nil, 0, errDead
	}
	return m.KV.List(ctx, prefix, opt)
}

func (m *mortal) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	return m.KV.Txn(ctx, ops)
}

func (m *mortal) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
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
	return mortalSession{s, m}, nil
}

// mortalSession is a session whose end by its own process is not seen once the
// process is dead.
type mortalSession struct {
	kv.Session
	m *mortal
}

func (s mortalSession) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if s.m.dead.Load() {
		return false, errDead
	}
	return s.Session.Acquire(ctx, key, value)
}

func (s mortalSession) Release(ctx context.Context, key string) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Release(ctx, key)
}

func (s mortalSession) Close(ctx context.Context) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Close(ctx)
}
