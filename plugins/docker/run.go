package docker

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/musterhq/muster/plugins/internal/health"
	"github.com/musterhq/muster/plugins/sdk"
)

// Start implements [sdk.Executor].
func (e *Executor) Start(ctx context.Context, task *sdk.Task, known sdk.Handle) (*sdk.Started, error) {
	found, err := e.find(ctx, task.GetId(), known)
	if err != nil {
		return nil, err
	}
	if !started(found) {
		if err := e.engine.ContainerStart(ctx, found.ID, container.StartOptions{}); err != nil {
			return nil, e.startError(ctx, task, found, err)
		}
		if found, err = e.inspect(ctx, found.ID); err != nil {
			return nil, gone(task.GetId(), err)
		}
	}
	if found, err = e.healthy(ctx, found); err != nil {
		return nil, gone(task.GetId(), err)
	}
	held, err := e.joined(ctx, found)
	if err != nil {
		return nil, err
	}
	kept, err := newHandle(found.ID, held)
	if err != nil {
		return nil, err
	}
	started := &sdk.Started{Handle: kept, Status: status(found)}
	switch {
	case held != nil && provides(task, held.HostConfig) && !task.GetNetworked():
		started.Ports = heldPorts(task.GetPorts(), held)
	case joins(found):
		e.pool.fill(task.GetNodeId())
	case found.HostConfig.NetworkMode.IsHost():
		started.Ports = ownPorts(task.GetPorts())
	default:
		started.Ports = heldPorts(task.GetPorts(), found)
	}
	return started, nil
}

// gone says that a container has vanished in the SDK's words.
func gone(taskID string, err error) error {
	if isNotFound(err) {
		return sdk.NotFound(taskID)
	}
	return err
}

// startError says whose fault it is that the Engine does not start a container.
func (e *Executor) startError(ctx context.Context, task *sdk.Task, found *container.InspectResponse, err error) error {
	if joins(found) {
		if held, err := e.joined(ctx, found); err == nil && (held == nil || !alive(held)) {
			return sdk.Failed(errNamespaceGone)
		}
	} else if isInternal(err) && !found.HostConfig.NetworkMode.IsHost() {
		if taken := e.taken(ctx, found.ID, task.GetPorts()); taken != nil {
			return sdk.NodeFault(taken)
		}
	}
	err = fmt.Errorf("start the container: %w", err)
	switch {
	case isInvalid(err), isNotFound(err):
		// The command is not in the image, or may not be executed.
		return sdk.SpecFault("", err)
	case isInternal(err), isConflict(err):
		// A port that is taken, a device that is not there.
		return sdk.NodeFault(err)
	default:
		return engineError(err)
	}
}

// watch calls look at first and after every event of a container, until it says
// that it has seen what it wanted. An event only says: look again. If there is a
// timer, watch also calls look when it fires, which each event sets to checkLag.
func (e *Executor) watch(ctx context.Context, id string, again *time.Timer, look func() (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, errs := e.engine.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)), filters.Arg("container", id),
	)})
	var fired <-chan time.Time
	if again != nil {
		fired = again.C
	}
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-fired:
		case <-messages:
			if again != nil {
				again.Reset(checkLag)
			}
		case err := <-errs:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return sdk.Temporary(fmt.Errorf("watch the container: %w", err), awayRetry)
		}
	}
}

// Wait implements [sdk.Executor].
func (e *Executor) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return nil, err
	}
	if !started(found) {
		return nil, sdk.NotStarted(ref.TaskID)
	}
	if alive(found) {
		stop := e.guard(ctx, found)
		found, err = e.ended(ctx, found)
		stop()
		if err != nil {
			return nil, gone(ref.TaskID, err)
		}
		if found, err = e.cause(ctx, found); err != nil {
			return nil, gone(ref.TaskID, err)
		}
	}
	ended := &sdk.Ended{Status: status(found), At: engineTime(found.State.FinishedAt)}
	orphaned, err := e.orphaned(ctx, found)
	switch {
	case err != nil:
		return nil, err
	case orphaned:
		ended.Error = errNamespaceGone.Error()
	case failedChecks(found):
		ended.Error = errUnhealthy.Error() + ": " + health.Unhealthy(healthOf(found))
	}
	return ended, nil
}

// ended returns when a container has ended. One that becomes unhealthy is made
// to.
func (e *Executor) ended(ctx context.Context, found *container.InspectResponse) (*container.InspectResponse, error) {
	if !checked(found) {
		if err := e.stopped(ctx, found.ID); err != nil {
			return nil, err
		}
		return e.inspect(ctx, found.ID)
	}
	err := e.watch(ctx, found.ID, nil, func() (bool, error) {
		var err error
		if found, err = e.inspect(ctx, found.ID); err != nil {
			return false, err
		}
		return !alive(found) || found.State.Health.Status == container.Unhealthy, nil
	})
	if err != nil || !alive(found) {
		return found, err
	}
	if err := e.stop(ctx, found.ID, nil); err != nil {
		return nil, err
	}
	return e.inspect(ctx, found.ID)
}

// causePatience is how long the Engine may take to learn that what it has just seen
// end was killed for want of memory.
const causePatience = 500 * time.Millisecond

// cause looks again at a container that was killed and whose memory is limited.
// containerd tells of the end and of its cause in events of their own, and the
// cause may come last.
func (e *Executor) cause(ctx context.Context, found *container.InspectResponse) (*container.InspectResponse, error) {
	within, cancel := context.WithTimeout(ctx, causePatience)
	defer cancel()
	known, err := poll(within, func() (*container.InspectResponse, error) {
		if found.State.ExitCode != exitKilled || found.State.OOMKilled || found.HostConfig.Memory == 0 {
			return found, nil
		}
		again, err := e.inspect(within, found.ID)
		if err == nil && !again.State.OOMKilled {
			err = errPending
		}
		return again, err
	})
	if err != nil {
		// It is known how it ended, if not why.
		return found, ctx.Err()
	}
	return known, nil
}

// exitKilled is the exit code of what SIGKILL has ended.
const exitKilled = 128 + 9

// stopped returns when a container does not run.
func (e *Executor) stopped(ctx context.Context, id string) error {
	results, errs := e.engine.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case <-results:
		return nil
	case err := <-errs:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return engineError(fmt.Errorf("wait for the container: %w", err))
	}
}

// stop asks a container to stop, and kills it after the grace period; nil means
// the one that it was created with.
func (e *Executor) stop(ctx context.Context, id string, grace *time.Duration) error {
	options := container.StopOptions{}
	if grace != nil {
		options.Timeout = new(seconds(*grace))
	}
	if err := e.engine.ContainerStop(ctx, id, options); err != nil {
		return engineError(fmt.Errorf("stop the container: %w", err))
	}
	return nil
}

// Shutdown implements [sdk.Executor].
func (e *Executor) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return nil, err
	}
	if grace != nil && *grace <= 0 {
		return e.Terminate(ctx, ref)
	}
	// Also of one that is just being started by a call whose caller has died.
	if err := e.stop(ctx, found.ID, grace); err != nil {
		return nil, gone(ref.TaskID, err)
	}
	if found, err = e.inspect(ctx, found.ID); err != nil {
		return nil, gone(ref.TaskID, err)
	}
	return status(found), nil
}

// Terminate implements [sdk.Executor].
func (e *Executor) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return nil, err
	}
	if err := e.kill(ctx, found.ID); err != nil {
		return nil, gone(ref.TaskID, err)
	}
	if started(found) {
		if err := e.stopped(ctx, found.ID); err != nil {
			return nil, gone(ref.TaskID, err)
		}
	}
	if found, err = e.inspect(ctx, found.ID); err != nil {
		return nil, gone(ref.TaskID, err)
	}
	return status(found), nil
}

// kill kills a container that runs.
func (e *Executor) kill(ctx context.Context, id string) error {
	// The Engine answers with a conflict if there is nothing to kill.
	if err := e.engine.ContainerKill(ctx, id, "SIGKILL"); err != nil && !isConflict(err) {
		return engineError(fmt.Errorf("kill the container: %w", err))
	}
	return nil
}

// Remove implements [sdk.Executor].
func (e *Executor) Remove(ctx context.Context, ref sdk.Ref) error {
	if err := e.connect(ctx); err != nil {
		return err
	}
	note, err := e.intents.read(ref.TaskID)
	if err != nil {
		return err
	}
	if note != nil {
		if err := e.settle(ctx, note); err != nil {
			return err
		}
	}
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil && !isNotFound(err) {
		return err
	}
	// The pause container goes first: that there was one can be seen of the other.
	if found == nil || joins(found) || note.isNetworked() {
		if err := e.removePause(ctx, ref.TaskID); err != nil {
			return err
		}
	}
	if found != nil {
		if err := e.remove(ctx, found.ID); err != nil {
			return err
		}
	}
	// A process that was killed may have left a part of a note.
	return e.intents.remove(ref.TaskID)
}

// remove removes a container and its nameless volumes, and returns when it is
// gone.
func (e *Executor) remove(ctx context.Context, id string) error {
	_, err := poll(ctx, func() (any, error) {
		err := e.engine.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil || isNotFound(err):
			return nil, nil
		case isConflict(err):
			// Another call is at it already, whose caller may have died.
			return nil, errPending
		}
		return nil, engineError(fmt.Errorf("remove the container: %w", err))
	})
	return err
}
