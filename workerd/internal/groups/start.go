package groups

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// Describe implements [executor.Executor].
func (g *Group) Describe(ctx context.Context) (*executor.About, error) { return g.exec.Describe(ctx) }

// List implements [executor.Executor].
func (g *Group) List(ctx context.Context, node string) ([]executor.Listed, error) {
	return g.exec.List(ctx, node)
}

// Prepare prepares all containers, the main one first. What a container needs is therefore
// there before any of them runs.
func (g *Group) Prepare(ctx context.Context, _ *executor.Task, _ []byte) (*executor.Prepared, error) {
	if !g.cfg.Executor.Can(executor.RunsGroups) {
		return nil, &executor.Error{
			Code: codes.FailedPrecondition, BlameNode: true, NotCalled: true,
			Err: fmt.Errorf("executor %s cannot run tasks with a group", g.cfg.Executor.Name),
		}
	}
	prepared, err := g.prepare(ctx, g.main)
	if err != nil {
		return nil, err
	}
	for _, c := range g.others {
		if _, err := g.prepare(ctx, c); err != nil {
			return nil, err
		}
	}
	return &executor.Prepared{Handle: g.Handle(), Namespace: prepared.Namespace}, nil
}

func (g *Group) prepare(ctx context.Context, c *container) (*executor.Prepared, error) {
	ref := g.ref(c)
	prepared, err := g.exec.Prepare(ctx, c.task, ref.Handle)
	if err != nil {
		g.failed(ctx, c, err)
		return nil, about(c, err)
	}
	g.keep(c, prepared.Handle)
	if g.state(c) < musterv1.TaskState_READY {
		g.move(c, musterv1.TaskState_READY, nil)
	}
	return prepared, nil
}

// failed notes that a call for a container failed.
func (g *Group) failed(ctx context.Context, c *container, err error) {
	if ctx.Err() != nil {
		return
	}
	if lasting(err) {
		g.move(c, musterv1.TaskState_FAILED, func(s *musterv1.ContainerStatus) { s.Error = err.Error() })
		return
	}
	g.update(c, func(s *musterv1.ContainerStatus) { s.Error = err.Error() })
}

// Start runs the init containers, starts the sidecars and then the main container. It
// returns when they run and are healthy. If the task cannot run, all its containers have
// ended when it returns.
func (g *Group) Start(ctx context.Context, _ *executor.Task, _ []byte, _ *executor.TaskNetwork) (*executor.Started, error) {
	started, err := g.bringUp(ctx)
	if err == nil {
		g.say("", "")
		return &executor.Started{Handle: g.Handle(), Runtime: g.runtime(started.Runtime), Ports: started.Ports}, nil
	}
	if ctx.Err() == nil && lasting(err) {
		if stopErr := g.stopAll(ctx, nil, true); stopErr != nil {
			return nil, stopErr
		}
	}
	return nil, err
}

func (g *Group) bringUp(ctx context.Context) (*executor.Started, error) {
	for _, c := range g.ofRole(initRole) {
		if err := g.runInit(ctx, c); err != nil {
			return nil, err
		}
	}
	for _, c := range g.ofRole(sidecarRole) {
		if _, err := g.start(ctx, c); err != nil {
			return nil, about(c, err)
		}
	}
	return g.start(ctx, g.main)
}

// runInit runs an init container to its end. One that an earlier call started is not
// started again.
func (g *Group) runInit(ctx context.Context, c *container) error {
	if _, err := g.start(ctx, c); err != nil {
		return about(c, err)
	}
	g.say(fmt.Sprintf("running init container %q", c.name), "")
	ended, err := g.exec.Wait(ctx, g.ref(c))
	if err != nil {
		return about(c, err)
	}
	g.ended(c, ended)
	if reason := Failure(ended); reason != "" {
		return &executor.Error{Code: codes.Aborted, Err: fmt.Errorf("init container %q: %s", c.name, reason)}
	}
	return nil
}

// start starts a container, and returns when it runs and is healthy.
func (g *Group) start(ctx context.Context, c *container) (*executor.Started, error) {
	waiting := "starting"
	if c.role != mainRole {
		waiting = fmt.Sprintf("starting %s %q", noun(c), c.name)
	}
	g.say(waiting, "")
	if g.state(c) < musterv1.TaskState_STARTING {
		g.move(c, musterv1.TaskState_STARTING, nil)
	}
	stop := g.watch(ctx, c, func(o *executor.Observation) {
		message, problem := waiting, o.Error
		if o.Message != "" {
			message += ": " + o.Message
		}
		if problem != "" && c.role != mainRole {
			problem = fmt.Sprintf("%s %q: %s", noun(c), c.name, problem)
		}
		g.say(message, problem)
	})
	started, err := g.exec.Start(ctx, c.task, g.ref(c).Handle, g.cfg.Network)
	stop()
	if err != nil {
		g.failed(ctx, c, err)
		return nil, err
	}
	g.keep(c, started.Handle)
	if !over(g.state(c)) {
		g.move(c, musterv1.TaskState_RUNNING, func(s *musterv1.ContainerStatus) { s.Runtime = started.Runtime })
	}
	return started, nil
}

// Update implements [executor.Executor].
func (g *Group) Update(ctx context.Context, _ *executor.Task, _ []byte) ([]byte, error) {
	for _, c := range append([]*container{g.main}, g.others...) {
		handle, err := g.exec.Update(ctx, c.task, g.ref(c).Handle)
		if err != nil {
			return nil, about(c, err)
		}
		g.keep(c, handle)
	}
	return g.Handle(), nil
}

// Signal implements [executor.Executor]. The reference names a container by its id.
func (g *Group) Signal(ctx context.Context, ref executor.Ref, signal string) error {
	for _, c := range append([]*container{g.main}, g.others...) {
		if c.task.ID == ref.TaskID {
			return about(c, g.exec.Signal(ctx, g.ref(c), signal))
		}
	}
	return fmt.Errorf("task %s has no container %s", g.main.task.ID, ref.TaskID)
}
