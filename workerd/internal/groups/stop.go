package groups

import (
	"context"
	"errors"
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// stopSlack is what the end of a container may take beyond its grace period.
const stopSlack = 30 * time.Second

// Shutdown stops the main container, then the sidecars in reverse order, and then runs the
// post-stop containers.
func (g *Group) Shutdown(ctx context.Context, _ executor.Ref, grace *time.Duration) (*musterv1.RuntimeStatus, error) {
	if err := g.stopAll(ctx, grace, g.cfg.Begun); err != nil {
		return nil, err
	}
	return g.mainRuntime(), nil
}

// mainRuntime returns what is known of the main container, or nil.
func (g *Group) mainRuntime() *musterv1.RuntimeStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.main.status.GetRuntime()
}

// stopAll stops all containers, and then runs the post-stop containers if anything has
// begun.
func (g *Group) stopAll(ctx context.Context, grace *time.Duration, begun bool) error {
	if err := g.stop(ctx, g.main, grace); err != nil {
		return err
	}
	for _, role := range []musterv1.GroupContainer_Role{sidecarRole, initRole} {
		for _, c := range g.reversed(role) {
			if err := g.stop(ctx, c, nil); err != nil {
				return err
			}
		}
	}
	for _, c := range g.ofRole(postStopRole) {
		if !begun {
			g.move(c, musterv1.TaskState_SHUTDOWN, nil)
		} else if err := g.runPostStop(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// stop asks a container to end. One that does not end in time is killed. A container that
// has ended, as far as is known, may have been started again.
func (g *Group) stop(ctx context.Context, c *container, period *time.Duration) error {
	limit := grace(c)
	if own := c.task.Spec.GetContainer().GetStopGracePeriod(); period == nil && own != nil {
		period = &limit
	}
	if period != nil {
		limit = max(limit, *period)
	}
	within, cancel := context.WithTimeout(ctx, limit+stopSlack)
	runtime, err := g.exec.Shutdown(within, g.ref(c), period)
	cancel()
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return g.kill(ctx, c)
	}
	if err != nil {
		return about(c, err)
	}
	g.stopped(c, runtime)
	return nil
}

// stopped notes that a container was stopped, unless it had ended before.
func (g *Group) stopped(c *container, runtime *musterv1.RuntimeStatus) {
	if over(g.state(c)) {
		return
	}
	g.move(c, musterv1.TaskState_SHUTDOWN, func(s *musterv1.ContainerStatus) { s.Runtime = runtime })
}

func (g *Group) kill(ctx context.Context, c *container) error {
	runtime, err := g.exec.Terminate(ctx, g.ref(c))
	if err != nil {
		return about(c, err)
	}
	g.stopped(c, runtime)
	return nil
}

// runPostStop runs a post-stop container, and kills it when its time is over. That it
// fails changes nothing else.
func (g *Group) runPostStop(ctx context.Context, c *container) error {
	if over(g.state(c)) {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var ended *executor.Ended
	_, err := g.start(within, c)
	if err == nil {
		ended, err = g.exec.Wait(within, g.ref(c))
	}
	switch {
	case err == nil:
		g.ended(c, ended)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case within.Err() != nil:
		runtime, err := g.exec.Terminate(ctx, g.ref(c))
		if err != nil && !lasting(err) {
			return about(c, err)
		}
		g.move(c, musterv1.TaskState_FAILED, func(s *musterv1.ContainerStatus) {
			s.Runtime, s.Error = runtime, fmt.Sprintf("did not end within %s and was killed", c.timeout)
		})
		return nil
	case lasting(err):
		g.failed(ctx, c, err)
		return nil
	}
	return about(c, err)
}

// Terminate kills all containers. No post-stop container is started.
func (g *Group) Terminate(ctx context.Context, _ executor.Ref) (*musterv1.RuntimeStatus, error) {
	for _, c := range append([]*container{g.main}, g.others...) {
		if err := g.kill(ctx, c); err != nil {
			return nil, err
		}
	}
	return g.mainRuntime(), nil
}

// Remove removes all containers, the main one last: the executor may keep what the others
// share with it, and List finds the task by it.
func (g *Group) Remove(ctx context.Context, _ executor.Ref) error {
	var refused error
	for i := range g.others {
		c := g.others[len(g.others)-1-i]
		if err := g.exec.Remove(ctx, g.ref(c)); err != nil {
			if !lasting(err) {
				return about(c, err)
			}
			refused = errors.Join(refused, about(c, err))
		}
	}
	if err := g.exec.Remove(ctx, g.ref(g.main)); err != nil {
		return err
	}
	return refused
}
