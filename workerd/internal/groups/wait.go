package groups

import (
	"context"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/executor"
)

const (
	// firstRestart and longestRestart bound the pauses before a sidecar that ended is
	// started again. One that ran for steadyAfter begins with the first again.
	firstRestart   = time.Second
	longestRestart = time.Minute
	steadyAfter    = 10 * time.Second
)

// Wait returns when the main container has ended, all sidecars have been stopped, and the
// post-stop containers have run. Sidecars that end before that are started again.
func (g *Group) Wait(ctx context.Context, _ executor.Ref) (*executor.Ended, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var supervising sync.WaitGroup
	for _, c := range g.ofRole(sidecarRole) {
		supervising.Go(func() { g.supervise(inner, c) })
	}
	for _, c := range g.ofRole(initRole) {
		if !over(g.state(c)) {
			// The worker's state was lost.
			g.move(c, musterv1.TaskState_COMPLETE, nil)
		}
	}
	if g.state(g.main) < musterv1.TaskState_RUNNING {
		g.move(g.main, musterv1.TaskState_RUNNING, func(s *musterv1.ContainerStatus) { s.Runtime = g.cfg.Runtime })
	}
	ended, err := g.wait(ctx, g.main)
	cancel()
	supervising.Wait()
	if err != nil && (ctx.Err() != nil || !lasting(err)) {
		return nil, err
	}
	if err == nil {
		g.ended(g.main, ended)
	} else {
		g.failed(ctx, g.main, err)
	}
	// A main container that the executor lost leaves nothing behind either.
	if stopErr := g.stopAll(ctx, nil, true); stopErr != nil {
		return nil, stopErr
	}
	return ended, err
}

// wait returns when a container has ended.
func (g *Group) wait(ctx context.Context, c *container) (*executor.Ended, error) {
	stop := g.watch(ctx, c, nil)
	defer stop()
	return g.exec.Wait(ctx, g.ref(c))
}

// supervise starts a sidecar again each time that it ends, until ctx ends.
func (g *Group) supervise(ctx context.Context, c *container) {
	pause := backoff.New(firstRestart, longestRestart)
	for {
		began := time.Now()
		ended, err := g.waitStarted(ctx, c)
		var last *musterv1.RuntimeStatus
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			last = ended.Runtime
			g.ended(c, ended)
		case !lasting(err):
			// The executor is away, and says nothing about the sidecar.
			if backoff.Sleep(ctx, max(executor.ErrorOf(err).Delay(), pause.Next())) != nil {
				return
			}
			continue
		default:
			g.failed(ctx, c, err)
		}
		if time.Since(began) >= steadyAfter {
			pause.Reset()
		}
		for again := true; again; again = g.restart(ctx, c, last) != nil {
			if backoff.Sleep(ctx, pause.Next()) != nil {
				return
			}
		}
	}
}

// waitStarted returns when a sidecar has ended. If it is not known to run, it is started
// first, which has no effect on one that was started before.
func (g *Group) waitStarted(ctx context.Context, c *container) (*executor.Ended, error) {
	if g.state(c) != musterv1.TaskState_RUNNING {
		g.move(c, musterv1.TaskState_STARTING, nil)
		if _, err := g.start(ctx, c); err != nil {
			return nil, err
		}
	}
	return g.wait(ctx, c)
}

// exitOf returns what of a run that has ended is kept when the container runs again.
func exitOf(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	if r == nil {
		return nil
	}
	return &musterv1.RuntimeStatus{ExitCode: r.ExitCode, OomKilled: r.OomKilled}
}

// restart starts a sidecar again that has ended as last says, which is nil if that is not
// known. Its id stays the same.
func (g *Group) restart(ctx context.Context, c *container, last *musterv1.RuntimeStatus) error {
	if err := g.exec.Remove(ctx, g.ref(c)); err != nil {
		g.failed(ctx, c, err)
		return err
	}
	g.keep(c, nil)
	g.move(c, musterv1.TaskState_ACCEPTED, func(s *musterv1.ContainerStatus) {
		s.Restarts, s.Runtime, s.Previous = s.Restarts+1, nil, exitOf(last)
	})
	if _, err := g.prepare(ctx, c); err != nil {
		return err
	}
	_, err := g.start(ctx, c)
	return err
}
