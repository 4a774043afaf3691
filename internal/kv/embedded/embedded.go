// Package embedded is the kv for one machine: the whole key space lies in the
// memory of one process, and can be kept in one bbolt file. It gives what Consul
// gives, so that everything above it is the same on one machine and on many.
//
// Sessions and locks belong to the process and end with it: the file never
// holds a key that is held as a lock.
package embedded

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/musterhq/muster/internal/kv"
)

// limits are Consul's, so that what works here works there.
var limits = kv.Limits{Ops: 128, Bytes: 360_000}

// Config says where to keep the key space.
type Config struct {
	// Path is the bbolt file; it is made if it is not there. Empty: memory
	// only.
	Path string
}

// KV is a key space in this process. It implements kv.KV.
type KV struct {
	file *file // nil: memory only

	mu sync.Mutex
	// pairs is the key space. The values in it are never changed, so they may be
	// read without mu once they were looked up.
	pairs  btree.Map[string, kv.Pair]
	index  uint64
	closed bool
	watch  watch
	// sessions that live, by id.
	sessions map[string]*session
	nextID   uint64
}

var _ kv.KV = (*KV)(nil)

// errClosed is what calls get after Close.
var errClosed = fmt.Errorf("embedded store is closed: %w", kv.ErrUnavailable)

// Open opens a key space.
func Open(cfg Config) (*KV, error) {
	// Indexes start at 1: 0 stands for "does not exist".
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

// do runs f with mu held, and returns when what it has seen and done is on disk.
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
	// A conflict, too, may be with what is not on disk yet.
	if err := s.file.await(ctx, index); err != nil {
		return err
	}
	return err
}

func copied(p kv.Pair) kv.Pair {
	p.Value = append([]byte(nil), p.Value...)
	return p
}
