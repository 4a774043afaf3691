package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/dependency"
)

// watchesAtOnce is how many services are watched at the same time.
const watchesAtOnce = 50

// convergeAll waits until services run, all at the same time. A service is waited for once
// those that it depends on run, and not at all if they do not.
func (c *CLI) convergeAll(ctx context.Context, w *wait, services []*musterv1.Service) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limited := ctx
	if w.timeout > 0 {
		var end context.CancelFunc
		limited, end = context.WithTimeout(ctx, w.timeout)
		defer end()
	}
	board := &board{c: c, quiet: w.quiet, total: len(services)}
	defer board.end()
	all := map[string]*oneOfMany{}
	for _, s := range services {
		all[dependency.Fold(s.Spec.GetName())] = &oneOfMany{done: make(chan struct{})}
	}
	slots := make(chan struct{}, watchesAtOnce)
	var running sync.WaitGroup
	errs := make([]error, len(services))
	for i, s := range services {
		running.Go(func() {
			this := all[dependency.Fold(s.Spec.GetName())]
			defer close(this.done)
			if blocked := awaitDependencies(limited, s, all); blocked {
				this.failed = true
				return
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			f := c.newWaiting(client, w, s)
			f.progress.board = board
			if err := f.await(ctx, limited, w); err != nil {
				errs[i] = fmt.Errorf("%s: %w", s.Spec.GetName(), err)
			}
			if this.failed = errs[i] != nil; this.failed && !errors.Is(errs[i], errNotConverged) {
				cancel() // the others would fail for the same reason
			}
			board.done(errs[i] == nil)
		})
	}
	running.Wait()
	return firstCauses(errs)
}

// oneOfMany is a service that is waited for among others.
type oneOfMany struct {
	done chan struct{}
	// failed is set before done is closed.
	failed bool
}

// awaitDependencies waits for the services that a service depends on, and reports whether
// one of them does not run. A time limit ends it: the service is looked at then.
func awaitDependencies(ctx context.Context, s *musterv1.Service, all map[string]*oneOfMany) (blocked bool) {
	for _, d := range s.Spec.GetDependsOn() {
		other := all[dependency.Fold(d.Service)]
		if other == nil {
			continue
		}
		select {
		case <-other.done:
			if other.failed && dependency.Required(d) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// firstCauses leaves out errors of waits that others ended.
func firstCauses(errs []error) error {
	var causes, interrupted []error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, context.Canceled):
			interrupted = append(interrupted, err)
		default:
			causes = append(causes, err)
		}
	}
	if len(causes) == 0 {
		causes = interrupted
	}
	return errors.Join(causes...)
}

// board shows the progress of many services: a line for each change, or on a terminal one
// line that is redrawn.
type board struct {
	c     *CLI
	quiet bool
	total int

	mu        sync.Mutex
	converged int
	drawn     bool
}

// show shows a line of one service. On a terminal it replaces that of another.
func (b *board) show(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.c.Terminal {
		_, _ = fmt.Fprintln(b.c.Err, line)
		return
	}
	_, _ = fmt.Fprintf(b.c.Err, "\r\x1b[K%s", cut(fmt.Sprintf("%d/%d services: %s", b.converged, b.total, line), 110, false))
	b.drawn = true
}

// done counts a service whose wait has ended.
func (b *board) done(converged bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if converged {
		b.converged++
	}
}

func (b *board) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn {
		_, _ = fmt.Fprintf(b.c.Err, "\r\x1b[K%d/%d services run as they should\n", b.converged, b.total)
	}
}
