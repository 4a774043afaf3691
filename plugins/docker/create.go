package docker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/docker/docker/api/types/container"

	"github.com/musterhq/muster/plugins/sdk"
)

// settlePoll is how long to wait between two looks for a container that another
// call is creating.
const settlePoll = 50 * time.Millisecond

// Prepare implements [sdk.Executor].
func (e *Executor) Prepare(ctx context.Context, task *sdk.Task, known sdk.Handle) (sdk.Handle, error) {
	if !idPattern.MatchString(task.GetId()) {
		return nil, sdk.SpecFault("", fmt.Errorf("a task's id cannot be %q", task.GetId()))
	}
	found, err := e.find(ctx, task.GetId(), known)
	if err != nil && !sdk.IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		handle, err := e.prepared(ctx, task, found)
		if handle != nil || err != nil {
			return handle, err
		}
	}
	config, host, err := e.convert(ctx, task)
	if err != nil {
		return nil, err
	}
	if err := e.checkVolumes(ctx, task.GetSpec().GetContainer().GetMounts()); err != nil {
		return nil, err
	}
	if err := e.ensureImage(ctx, task.GetSpec().GetContainer()); err != nil {
		return nil, err
	}
	provides, shares := provides(task, host), shares(task, host)
	if err := e.intents.write(intent{
		TaskID: task.GetId(), NodeID: task.GetNodeId(), Name: task.GetName(), Image: config.Image, Networked: provides,
	}); err != nil {
		return nil, sdk.NodeFault(err)
	}
	var held *container.InspectResponse
	switch {
	case provides:
		held, err = e.providePause(ctx, task, config, host)
	case shares:
		held, err = e.sharedPause(ctx, task)
	}
	if err != nil {
		return nil, err
	}
	if held != nil {
		join(config, host, held.ID)
	}
	id, err := e.create(ctx, task, config, host)
	if err != nil && !definite(err) {
		// The Engine may be creating it still, so the note stays.
		return nil, err
	}
	if err != nil && held != nil && provides {
		if removeErr := e.remove(ctx, held.ID); removeErr != nil {
			return nil, errors.Join(err, removeErr)
		}
	}
	if noteErr := e.intents.remove(task.GetId()); noteErr != nil && err == nil {
		err = sdk.NodeFault(noteErr)
	}
	if err != nil {
		return nil, err
	}
	return newHandle(id, held)
}

// prepared returns the handle of a task that has a container, or nil if it has to be
// prepared again. What cannot be started is removed.
func (e *Executor) prepared(ctx context.Context, task *sdk.Task, found *container.InspectResponse) (sdk.Handle, error) {
	held, err := e.joined(ctx, found)
	if err != nil {
		return nil, err
	}
	if found.Config.Labels[labelPlaceholder] != "" || (!started(found) && joins(found) && (held == nil || !alive(held))) {
		return nil, e.remove(ctx, found.ID)
	}
	// It may have come after the death of the process that asked for it.
	if err := e.intents.remove(task.GetId()); err != nil {
		return nil, sdk.NodeFault(err)
	}
	return newHandle(found.ID, held)
}

// create creates a task's container, and returns its id, also if it is there.
func (e *Executor) create(ctx context.Context, task *sdk.Task, config *container.Config, host *container.HostConfig) (string, error) {
	return poll(ctx, func() (string, error) {
		created, err := e.engine.ContainerCreate(ctx, config, host, nil, nil, task.GetName())
		if err == nil {
			return created.ID, nil
		}
		if !isConflict(err) {
			return "", createError(err, host)
		}
		// The name is taken: by this task's own container, by another one, or by a
		// creation that is under way and cannot be seen yet.
		found, err := e.inspect(ctx, task.GetName())
		switch {
		case err == nil && ours(found, task.GetId()):
			return found.ID, nil
		case err == nil:
			return "", &definiteError{sdk.NodeFault(fmt.Errorf(
				"there is a container named %q on this node that is not of this task: rename or remove it", task.GetName()))}
		case isNotFound(err):
			return "", errPending
		}
		return "", err
	})
}

// createError says whose fault it is that the Engine does not create a
// container.
func createError(err error, host *container.HostConfig) error {
	err = fmt.Errorf("create the container: %w", err)
	switch {
	case isNotFound(err):
		// The image was there a moment ago.
		return &definiteError{sdk.Temporary(err, 0)}
	case isInvalid(err) && len(host.Mounts) == 0 && len(host.Sysctls) == 0:
		return &definiteError{sdk.SpecFault("", err)}
	case isInvalid(err):
		// What is mounted may be there on another node.
		return &definiteError{sdk.NodeFault(err)}
	case isUnable(err), isInternal(err):
		return &definiteError{sdk.NodeFault(err)}
	default:
		return engineError(err)
	}
}

// definiteError is the Engine's word that there is no container.
type definiteError struct{ error }

func (d *definiteError) Unwrap() error { return d.error }

func definite(err error) bool {
	var d *definiteError
	return errors.As(err, &d)
}

// settle returns once it is certain whether containers come of a note.
func (e *Executor) settle(ctx context.Context, note *intent) error {
	err := e.settleName(ctx, note.Name, &container.Config{Image: note.Image, Labels: map[string]string{
		labelTaskID: note.TaskID, labelNodeID: note.NodeID, labelPlaceholder: "true",
	}})
	if err != nil || !note.Networked {
		return err
	}
	i, err := e.pauseImage(ctx)
	if err != nil {
		return err
	}
	config, _ := pauseConfig(i.name, note.NodeID, "")
	config.Labels[labelPlaceholder] = "true"
	return e.settleName(ctx, pauseName(note.TaskID), config)
}

// settleName returns once it is certain whether a container of this name is being
// created. Either it is there, or its name can be taken by another, which shows that no
// call is creating it.
func (e *Executor) settleName(ctx context.Context, name string, config *container.Config) error {
	_, err := poll(ctx, func() (any, error) {
		_, err := e.engine.ContainerCreate(ctx, config, &container.HostConfig{}, nil, nil, name)
		if err == nil || isNotFound(err) || isInvalid(err) {
			// It is this one now, which will be removed, or there is no image
			// to create any from.
			return nil, nil
		}
		if !isConflict(err) {
			return nil, engineError(fmt.Errorf("see whether a container is being created: %w", err))
		}
		if _, err = e.inspect(ctx, name); isNotFound(err) {
			err = errPending
		}
		return nil, err
	})
	return err
}

// errPending says that another call is at work on a container, and that its result
// cannot be seen yet.
var errPending = errors.New("another call is at work on the container")

// poll calls try, with pauses, until it returns another error than errPending, or
// none.
func poll[T any](ctx context.Context, try func() (T, error)) (T, error) {
	return backoff.Retry(ctx, func() (T, error) {
		result, err := try()
		if err != nil && !errors.Is(err, errPending) {
			err = backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(settlePoll)), backoff.WithMaxElapsedTime(0))
}
