package kvfault

import (
	"context"

	"github.com/musterhq/muster/internal/kv"
)

// Get is the inner kv's, unless a fault hits it.
func (k *KV) Get(ctx context.Context, key string) (p kv.Pair, err error) {
	err = k.do(ctx, Call{Op: Get, Keys: []string{key}}, func() (err error) {
		p, err = k.inner.Get(ctx, key)
		return err
	})
	if err != nil {
		return kv.Pair{}, err
	}
	return p, nil
}

// List is the inner kv's, unless a fault hits it.
func (k *KV) List(ctx context.Context, prefix string, opt kv.ListOptions) (pairs []kv.Pair, index uint64, err error) {
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	call := Call{Op: List, Keys: []string{prefix}}
	r := &running{call, abort}
	err = k.do(ctx, call, func() (err error) {
		k.mu.Lock()
		k.lists[r] = struct{}{}
		k.mu.Unlock()
		defer func() {
			k.mu.Lock()
			delete(k.lists, r)
			k.mu.Unlock()
		}()
		pairs, index, err = k.inner.List(ctx, prefix, opt)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return pairs, index, nil
}

// Txn is the inner kv's, unless a fault hits it.
func (k *KV) Txn(ctx context.Context, ops []kv.Op) (pairs []kv.Pair, err error) {
	call := Call{Op: Txn, Keys: make([]string, len(ops))}
	for i, op := range ops {
		call.Keys[i] = op.Key
		call.Writes = call.Writes || op.Verb != kv.Get && op.Verb != kv.CheckIndex
	}
	err = k.do(ctx, call, func() (err error) {
		pairs, err = k.inner.Txn(ctx, ops)
		return err
	})
	if err != nil {
		return nil, err
	}
	return pairs, nil
}

// Limits are the inner kv's.
func (k *KV) Limits() kv.Limits { return k.inner.Limits() }

// NewSession is the inner kv's, unless a fault hits it.
func (k *KV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	var s *session
	err := k.do(ctx, Call{Op: Session, Writes: true}, func() error {
		inner, err := k.inner.NewSession(ctx, cfg)
		if err != nil {
			return err
		}
		s = &session{Session: inner, kv: k}
		k.mu.Lock()
		k.sessions[s] = struct{}{}
		k.mu.Unlock()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// session is the inner kv's, with calls that can be broken.
type session struct {
	kv.Session
	kv *KV
}

func (s *session) Acquire(ctx context.Context, key string, value []byte) (got bool, err error) {
	err = s.kv.do(ctx, Call{Op: Acquire, Keys: []string{key}, Writes: true}, func() (err error) {
		got, err = s.Session.Acquire(ctx, key, value)
		return err
	})
	if err != nil {
		return false, err
	}
	return got, nil
}

func (s *session) Release(ctx context.Context, key string) error {
	return s.kv.do(ctx, Call{Op: Release, Keys: []string{key}, Writes: true}, func() error {
		return s.Session.Release(ctx, key)
	})
}

func (s *session) Close(ctx context.Context) error {
	return s.kv.do(ctx, Call{Op: Close, Writes: true}, func() error {
		s.kv.mu.Lock()
		delete(s.kv.sessions, s)
		s.kv.mu.Unlock()
		return s.Session.Close(ctx)
	})
}

// Describe is the inner kv's, unless a fault hits it.
func (k *KV) Describe(ctx context.Context) (d kv.Description, err error) {
	err = k.do(ctx, Call{Op: Describe}, func() (err error) {
		d, err = k.inner.Describe(ctx)
		return err
	})
	return d, err
}

// Processes are the inner kv's, unless a fault hits the call.
func (k *KV) Processes(ctx context.Context, service string) (processes []kv.Process, err error) {
	err = k.do(ctx, Call{Op: Describe}, func() (err error) {
		processes, err = k.inner.Processes(ctx, service)
		return err
	})
	return processes, err
}
