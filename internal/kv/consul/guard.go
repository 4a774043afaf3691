package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// patience is how long a host may send nothing while it owes an answer, until it is
// probed. It is also the timeout of the probe. A hanging or unreachable host can delay a
// request by twice this time, even a list that waits for minutes. That is less than
// callTimeout, which would end a request without identifying the host as the cause.
const patience = 2 * time.Second

// errHangs ends a request to a host that does not answer the probe either.
var errHangs = errors.New("the host does not answer")

// guard ends a request when its host hangs.
type guard struct {
	r      *router
	at     int
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	looking sync.WaitGroup
}

// watchOver starts a guard. The request must use the guard's context.
func (r *router) watchOver(ctx context.Context, at int) *guard {
	g := &guard{r: r, at: at}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	// On a machine that stalls here, look may run before timer is set.
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(patience, g.look)
	return g
}

// look ends the request if the host hangs.
func (g *guard) look() {
	g.mu.Lock()
	if g.stopped {
		g.mu.Unlock()
		return
	}
	g.looking.Add(1)
	g.mu.Unlock()
	defer g.looking.Done()
	if !g.r.answers(g.ctx, g.at) {
		g.cancel(errHangs)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.stopped {
		g.timer.Reset(patience)
	}
}

// stop ends the guard and the request.
func (g *guard) stop() {
	g.mu.Lock()
	g.stopped = true
	g.timer.Stop()
	g.mu.Unlock()
	g.cancel(nil)
	g.looking.Wait()
}

// answers reports whether a host has sent anything recently, or answers a probe. Any
// answer counts.
func (r *router) answers(ctx context.Context, at int) bool {
	if r.sinceHeard(at) < patience {
		return true
	}
	ctx, cancel := context.WithTimeout(reporting(ctx), patience)
	defer cancel()
	// An agent answers this itself, even without a leader. If the token may not read it,
	// the agent answers with an error.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.scheme+"://"+r.hosts[at]+"/v1/agent/version", nil)
	if err != nil {
		return false
	}
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return false
	}
	r.hear(at)
	_ = resp.Body.Close()
	return true
}

func (r *router) hear(at int) {
	r.heard[at].Store(int64(time.Since(r.began)))
	r.silent[at].Store(false)
}

func (r *router) sinceHeard(at int) time.Duration {
	return time.Since(r.began) - time.Duration(r.heard[at].Load())
}

// guarded sends a request, guarded until its answer has been read.
func (r *router) guarded(req *http.Request, at int) (*http.Response, error) {
	g := r.watchOver(req.Context(), at)
	resp, err := r.next.RoundTrip(req.WithContext(g.ctx))
	if err != nil {
		if cause := context.Cause(g.ctx); errors.Is(cause, errHangs) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		g.stop()
		return nil, err
	}
	r.hear(at)
	resp.Body = &watchedBody{resp.Body, g}
	return resp, nil
}

// watchedBody stops the guard of a request when the body is closed.
type watchedBody struct {
	io.ReadCloser
	g *guard
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.g.stop()
	return err
}
