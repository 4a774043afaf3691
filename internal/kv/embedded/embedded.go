// Package embedded is the kv for one machine: the whole key space lies in the
// memory of one process, and can be kept in one bbolt file. It gives what Consul
// gives, so that everything above it is the same on one machine and on many.
//
// Sessions and locks belong to the process and end with it: they are never
// written to the file.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/musterhq/muster/internal/kv"
)

// limits are Consul's, so that what works here works there.
var limits = kv.Limits{Ops: 128, Bytes: 380_000}

// Config says where to keep the key space.
type Config struct {
	// Path is the bbolt file; it is made if it is not there. Empty: memory
	// only.
	Path string
}

// KV is a key space in this process. It implements kv.KV.
type KV struct {
	file *file // nil: memory only

	mu     sync.Mutex
	pairs  btree.Map[string, kv.Pair]
	index  uint64
	closed bool
	// recent holds the newest changes, oldest first; what happened up to the
	// index forgotten is no longer in it.
	recent    []change
	forgotten uint64
	waiters   map[*waiter]struct{}
	// sessions that live, by id.
	sessions map[string]*session
	nextID   uint64
}

var _ kv.KV = (*KV)(nil)

// errClosed is what calls get after Close.
var errClosed = fmt.Errorf("embedded store is closed: %w", kv.ErrUnavailable)

// change is a key that was written or removed at an index.
type change struct {
	index uint64
	key   string
}

// recentChanges is how many changes are remembered, at least.
const recentChanges = 8192

// waiter is a list that blocks until something under its prefix changes.
type waiter struct {
	prefix string
	wake   chan struct{}
}

// Open opens a key space.
func Open(cfg Config) (*KV, error) {
	// Indexes start at 1: 0 stands for "does not exist".
	s := &KV{index: 1, waiters: map[*waiter]struct{}{}, sessions: map[string]*session{}}
	if cfg.Path == "" {
		return s, nil
	}
	f, err := openFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	s.file = f
	if s.index, err = f.load(func(p kv.Pair) { s.pairs.Set(p.Key, p) }); err != nil {
		return nil, errors.Join(err, f.close())
	}
	s.forgotten = s.index
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
	clear(s.sessions)
	for w := range s.waiters {
		close(w.wake)
	}
	clear(s.waiters)
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
	if err := ctx.Err(); err != nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return kv.Pair{}, errClosed
	}
	p, ok := s.pairs.Get(key)
	if !ok {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	}
	return copied(p), nil
}

// List returns the pairs under a prefix; see kv.KV.
func (s *KV) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, 0, errClosed
	}
	if opt.After == 0 || opt.After > s.index || s.changedSince(prefix, opt.After) {
		pairs, index := s.list(prefix), s.index
		s.mu.Unlock()
		return pairs, index, nil
	}
	w := &waiter{prefix: prefix, wake: make(chan struct{})}
	s.waiters[w] = struct{}{}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiters, w)
		s.mu.Unlock()
		return nil, 0, fmt.Errorf("list %q: %w", prefix, context.Cause(ctx))
	case <-w.wake:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, errClosed
	}
	return s.list(prefix), s.index, nil
}

// changedSince reports whether something under prefix has changed since an
// index. It is true as well if that is too long ago to know.
func (s *KV) changedSince(prefix string, after uint64) bool {
	if after < s.forgotten {
		return true
	}
	for i := len(s.recent) - 1; i >= 0 && s.recent[i].index > after; i-- {
		if strings.HasPrefix(s.recent[i].key, prefix) {
			return true
		}
	}
	return false
}

func (s *KV) list(prefix string) []kv.Pair {
	var pairs []kv.Pair
	s.pairs.Ascend(prefix, func(key string, p kv.Pair) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		pairs = append(pairs, copied(p))
		return true
	})
	return pairs
}

func copied(p kv.Pair) kv.Pair {
	p.Value = append([]byte(nil), p.Value...)
	return p
}
