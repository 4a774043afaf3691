package session

import (
	"sync"
	"time"
)

// Standing is whether a worker has a session.
type Standing struct {
	// Connected says that a dispatcher has sent Welcome, and the session has not
	// ended.
	Connected bool
	// Since is when that last changed; zero if there was no session yet.
	Since time.Time
	// Err is why there is none, if an attempt has failed.
	Err error
}

// standing is a Standing that may be asked for from anywhere.
type standing struct {
	mu  sync.Mutex
	now Standing
}

// Standing returns whether there is a session now.
func (c *Client) Standing() Standing {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	return c.standing.now
}

// set notes that a session has begun or ended.
func (s *standing) set(connected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = Standing{Connected: connected, Since: time.Now()}
}

// failed notes why there is none.
func (s *standing) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Err = err
}
