package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/musterhq/muster/internal/kv"
)

// Sessions lets the parts of one process share one session, so that the process is in the
// store's catalog once. Each part closes its own handle. The session ends when Close is
// called or when it is lost. After that the next part that asks gets a new one.
type Sessions struct {
	kv  kv.KV
	cfg kv.SessionConfig

	// turn is a lock that a goroutine holds while it uses the fields below, and may wait
	// for the store.
	turn    chan struct{}
	current kv.Session
	closed  bool
}

// NewSessions returns an empty set of sessions.
func NewSessions(store kv.KV, cfg kv.SessionConfig) *Sessions {
	return &Sessions{kv: store, cfg: cfg, turn: make(chan struct{}, 1)}
}

// Open returns the process's session, or a new one if it has none that lives.
func (s *Sessions) Open(ctx context.Context) (kv.Session, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.giveBack()
	if s.closed {
		return nil, errors.New("the process is about to end")
	}
	former := s.current
	if former != nil {
		select {
		case <-former.Lost():
		default:
			return shared{former}, nil
		}
	}
	session, err := s.kv.NewSession(ctx, s.cfg)
	if err != nil {
		return nil, err
	}
	s.current = session
	if former != nil {
		// Its locks are lost already. This ends its renewals.
		_ = former.Close(ctx)
	}
	return shared{session}, nil
}

// Close ends the session and removes the process from the catalog.
func (s *Sessions) Close(ctx context.Context) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.giveBack()
	s.closed = true
	if s.current == nil {
		return nil
	}
	return s.current.Close(ctx)
}

func (s *Sessions) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the session: %w", context.Cause(ctx))
	}
}

func (s *Sessions) giveBack() { <-s.turn }

// shared is a handle of a session. Closing it does not end the session.
type shared struct{ kv.Session }

func (shared) Close(context.Context) error { return nil }
