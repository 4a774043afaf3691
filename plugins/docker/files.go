package docker

import (
	"context"
	"fmt"

	"github.com/docker/docker/api/types/mount"

	"github.com/musterhq/muster/plugins/internal/filemount"
	"github.com/musterhq/muster/plugins/internal/signals"
	"github.com/musterhq/muster/plugins/sdk"
)

// fileMounts returns the mounts of a task's files. Owner and mode are those of the files on
// the node.
func fileMounts(files []*sdk.File) []mount.Mount {
	all := make([]mount.Mount, len(files))
	for i, file := range files {
		all[i] = mount.Mount{
			Type: mount.TypeBind, Source: file.GetSource(), Target: file.GetTarget(), ReadOnly: true,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		}
	}
	return all
}

// Update implements [sdk.Updater]. A running container then sees the present content of
// its files; one that is started later sees it anyway.
func (e *Executor) Update(ctx context.Context, task *sdk.Task, known sdk.Handle) (sdk.Handle, error) {
	found, err := e.find(ctx, task.GetId(), known)
	if err != nil {
		return nil, err
	}
	if len(task.GetFiles()) == 0 || !found.State.Running {
		return known, nil
	}
	if err := filemount.Refresh(found.State.Pid, task.GetFiles()); err != nil {
		if again, inspectErr := e.inspect(ctx, found.ID); inspectErr == nil && again.State.Pid != found.State.Pid {
			// It has ended meanwhile.
			return known, nil
		}
		return nil, sdk.NodeFault(fmt.Errorf("show new files in the container: %w", err))
	}
	return known, nil
}

// Signal implements [sdk.Signaler].
func (e *Executor) Signal(ctx context.Context, ref sdk.Ref, signal string) error {
	number := signals.Number(signal)
	if number == 0 {
		return sdk.SpecFault("signal", fmt.Errorf("there is no signal %q", signal))
	}
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return err
	}
	if !alive(found) {
		return sdk.NotStarted(ref.TaskID)
	}
	err = e.engine.ContainerKill(ctx, found.ID, fmt.Sprint(int(number)))
	switch {
	case isConflict(err):
		return sdk.NotStarted(ref.TaskID)
	case err != nil:
		return gone(ref.TaskID, engineError(fmt.Errorf("signal the container: %w", err)))
	}
	return nil
}
