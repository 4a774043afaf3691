package embedded

import (
	"context"
	"fmt"
	"strconv"

	"github.com/musterhq/muster/internal/kv"
)

// session lives until it is closed: it stands for a part of this very
// process, and whatever kills that kills the store with it.
type session struct {
	kv   *KV
	id   string
	lost chan struct{}
	// held are the keys that it holds; guarded by kv.mu.
	held map[string]struct{}
	over bool
}

// NewSession opens a session. There is nothing to renew and no catalog.
func (s *KV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open session %q: %w", cfg.Name, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	s.nextID++
	x := &session{kv: s, id: "session-" + strconv.FormatUint(s.nextID, 10), lost: make(chan struct{}), held: map[string]struct{}{}}
	s.sessions[x.id] = x
	return x, nil
}

func (x *session) ID() string { return x.id }

func (x *session) Lost() <-chan struct{} { return x.lost }

// end marks the session as over; kv.mu is held.
func (x *session) end() {
	if !x.over {
		x.over = true
		close(x.lost)
	}
}

func (x *session) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("acquire %q: %w", key, context.Cause(ctx))
	}
	x.kv.mu.Lock()
	defer x.kv.mu.Unlock()
	if x.over {
		return false, fmt.Errorf("acquire %q: %w", key, kv.ErrSessionLost)
	}
	old, exists := x.kv.pairs.Get(key)
	if exists && old.Session != "" && old.Session != x.id {
		return false, nil
	}
	p := kv.Pair{Key: key, Value: append([]byte(nil), value...), Index: x.kv.index + 1, Session: x.id}
	x.kv.pairs.Set(key, p)
	x.held[key] = struct{}{}
	x.kv.commit(p.Index, []write{{pair: p}})
	return true, nil
}

func (x *session) Release(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("release %q: %w", key, context.Cause(ctx))
	}
	x.kv.mu.Lock()
	defer x.kv.mu.Unlock()
	if p, exists := x.kv.pairs.Get(key); exists && p.Session == x.id {
		x.remove([]string{key})
	}
	delete(x.held, key)
	return nil
}

// remove takes away keys that the session held; kv.mu is held.
func (x *session) remove(keys []string) {
	var written []write
	for _, key := range keys {
		if p, exists := x.kv.pairs.Get(key); exists && p.Session == x.id {
			x.kv.pairs.Delete(key)
			written = append(written, write{kv.Pair{Key: key}, true})
		}
	}
	if len(written) > 0 {
		x.kv.commit(x.kv.index+1, written)
	}
}

func (x *session) Close(context.Context) error {
	x.kv.mu.Lock()
	defer x.kv.mu.Unlock()
	if x.over {
		return nil
	}
	x.end()
	delete(x.kv.sessions, x.id)
	keys := make([]string, 0, len(x.held))
	for key := range x.held {
		keys = append(keys, key)
	}
	x.remove(keys)
	return nil
}
