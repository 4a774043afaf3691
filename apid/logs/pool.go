package logs

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// idle is how long a connection is kept without use.
const idle = time.Minute

// pool keeps one connection to each dispatcher.
type pool struct {
	dial func(string) (*grpc.ClientConn, error)

	mu     sync.Mutex
	conns  map[string]*pooled
	closed bool
}

type pooled struct {
	conn  *grpc.ClientConn
	users int
	// left is when the last user left.
	left time.Time
}

func newPool(dial func(string) (*grpc.ClientConn, error)) *pool {
	return &pool{dial: dial, conns: map[string]*pooled{}}
}

// get returns the connection to an address, and what to call when it is not
// needed any more.
func (p *pool) get(address string) (*grpc.ClientConn, func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, status.Error(codes.Unavailable, "this API server is stopping")
	}
	c := p.conns[address]
	if c == nil {
		conn, err := p.dial(address)
		if err != nil {
			return nil, nil, err
		}
		c = &pooled{conn: conn}
		p.conns[address] = c
	}
	c.users++
	return c.conn, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.users--
		c.left = time.Now()
	}, nil
}

// run closes connections that are idle, and all of them when ctx ends.
func (p *pool) run(ctx context.Context) error {
	tick := time.NewTicker(idle / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.close(func(*pooled) bool { return true }, true)
		case now := <-tick.C:
			if err := p.close(func(c *pooled) bool { return c.users == 0 && now.Sub(c.left) > idle }, false); err != nil {
				return err
			}
		}
	}
}

func (p *pool) close(which func(*pooled) bool, forGood bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = p.closed || forGood
	var errs []error
	for address, c := range p.conns {
		if which(c) {
			delete(p.conns, address)
			errs = append(errs, c.conn.Close())
		}
	}
	return errors.Join(errs...)
}
