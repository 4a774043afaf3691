// Package embedded implements kv.KV for one machine. The key space is in the memory of
// one process, and optionally in a bbolt file. It has the same guarantees as Consul, so
// that the code above it is the same for one machine and for many.
//
// Sessions and locks end with the process: keys that are held as locks are not written
// to the file.
package embedded

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/musterhq/muster/internal/kv"
)

// limits are Consul's limits, so that whatever works here also works with Consul.
var limits = kv.Limits{Ops: 128, Bytes: 360_000}

// Config configures a key space.
type Config struct {
	// Path is the bbolt file, which is created if needed. If it is empty, the key space is
	// only in memory.
	Path string
}

// KV is a key space in this process. It implements kv.KV.
type KV struct {
	file *file // nil: memory only

	mu sync.Mutex
	// pairs is the key space. Its values are never changed, so they may be read without
	// holding mu.
	pairs  btree.Map[string, kv.Pair]
	index  uint64
	closed bool
	watch  watch
	// sessions holds the open sessions by id.
	sessions map[string]*session
	nextID   uint64
}

var _ kv.KV = (*KV)(nil)

// errClosed is the error of calls after Close.
var errClosed = fmt.Errorf("embedded store is closed: %w", kv.ErrUnavailable)

// Open opens a key space.
func Open(cfg Config) (*KV, error) {
	// Indexes start at 1, because 0 means "does not exist".
	s := &KV{index: 1, watch: watch{groups: map[string]*group{}}, sessions: map[string]*session{}}
	if cfg.Path != "" {
		f, index, err := openFile(cfg.Path, func(p kv.Pair) { s.pairs.Set(p.Key, p) })
		if err != nil {
			return nil, err
		}
		s.file, s.index = f, index
	}
	s.watch.forgotten = s.index
	return s, nil
}

// Close ends all sessions and blocked calls, and closes the file.
func (s *KV) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, x := range s.sessions {
		x.end()
	}
	s.watch.wakeAll()
	s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	return s.file.close()
}

// Limits returns Consul's limits.
func (s *KV) Limits() kv.Limits { return limits }

// Get returns a key.
func (s *KV) Get(ctx context.Context, key string) (kv.Pair, error) {
	var (
		p      kv.Pair
		exists bool
	)
	err := s.do(ctx, func() error {
		p, exists = s.pairs.Get(key)
		return nil
	})
	if err == nil && !exists {
		err = kv.ErrNotFound
	}
	if err != nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, err)
	}
	return copied(p), nil
}

// List returns the pairs under a prefix; see kv.KV.
func (s *KV) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	var (
		pairs []kv.Pair
		index uint64
		wait  *group
	)
	look := func() error {
		if wait == nil && opt.After != 0 && opt.After <= s.index && !s.watch.changedSince(prefix, opt.After) {
			wait = s.watch.join(prefix)
			return nil
		}
		pairs, index = s.list(prefix), s.index
		return nil
	}
	err := s.do(ctx, look)
	if wait != nil {
		if err == nil {
			err = wait.wait(ctx)
		}
		s.mu.Lock()
		s.watch.leave(prefix, wait)
		s.mu.Unlock()
		if err == nil {
			err = s.do(ctx, look)
		}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	for i := range pairs {
		pairs[i] = copied(pairs[i])
	}
	return pairs, index, nil
}

func (s *KV) list(prefix string) []kv.Pair {
	var pairs []kv.Pair
	s.pairs.Ascend(prefix, func(key string, p kv.Pair) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		pairs = append(pairs, p)
		return true
	})
	return pairs
}

// do runs f with mu held, and returns when the state that f has seen or written is on disk.
func (s *KV) do(ctx context.Context, f func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	err := f()
	index := s.index
	s.mu.Unlock()
	if s.file == nil {
		return err
	}
	// A conflict may also be with a write that is not on disk yet.
	if err := s.file.await(ctx, index); err != nil {
		return err
	}
	return err
}

func copied(p kv.Pair) kv.Pair {
	p.Value = append([]byte(nil), p.Value...)
	return p
}
