package embedded

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/musterhq/muster/internal/kv"
)

// session is open until it is closed. It represents a part of this process, which cannot
// die without the store. So it needs no renewal and has no TTL.
type session struct {
	kv   *KV
	id   string
	lost chan struct{}
	// held are the keys that it may hold; guarded by kv.mu.
	held map[string]struct{}
	over bool
}

// NewSession opens a session. There is no catalog.
func (s *KV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	x := &session{kv: s, lost: make(chan struct{}), held: map[string]struct{}{}}
	err := s.do(ctx, func() error {
		s.nextID++
		x.id = "session-" + strconv.FormatUint(s.nextID, 10)
		s.sessions[x.id] = x
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open session %q: %w", cfg.Name, err)
	}
	return x, nil
}

func (x *session) ID() string { return x.id }

func (x *session) Lost() <-chan struct{} { return x.lost }

// end marks the session as ended. The caller holds kv.mu.
func (x *session) end() {
	if !x.over {
		x.over = true
		delete(x.kv.sessions, x.id)
		close(x.lost)
	}
}

func (x *session) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if err := limits.Check([]kv.Op{{Verb: kv.Set, Key: key, Value: value}}); err != nil {
		return false, fmt.Errorf("acquire: %w", err)
	}
	value = append([]byte(nil), value...)
	got := false
	err := x.kv.do(ctx, func() error {
		if x.over {
			return kv.ErrSessionLost
		}
		if old, exists := x.kv.pairs.Get(key); exists && old.Session != "" && old.Session != x.id {
			return nil
		}
		change := x.kv.begin()
		change.put(kv.Pair{Key: key, Value: value, Session: x.id})
		change.commit()
		x.held[key] = struct{}{}
		got = true
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("acquire %q: %w", key, err)
	}
	return got, nil
}

func (x *session) Release(ctx context.Context, key string) error {
	err := x.kv.do(ctx, func() error {
		x.remove(key)
		return nil
	})
	if err != nil {
		return fmt.Errorf("release %q: %w", key, err)
	}
	return nil
}

// remove removes the keys that the session holds. The caller holds kv.mu.
func (x *session) remove(keys ...string) {
	change := x.kv.begin()
	for _, key := range keys {
		if p, exists := x.kv.pairs.Get(key); exists && p.Session == x.id {
			change.remove(key)
		}
		delete(x.held, key)
	}
	change.commit()
}

func (x *session) Close(ctx context.Context) error {
	x.kv.mu.Lock()
	defer x.kv.mu.Unlock()
	if !x.over {
		x.end()
		x.remove(slices.Collect(maps.Keys(x.held))...)
	}
	return nil
}
