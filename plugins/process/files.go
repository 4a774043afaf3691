//go:build linux

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/musterhq/muster/plugins/internal/filemount"
	"github.com/musterhq/muster/plugins/internal/signals"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// filesVariable names the directory of a task's files where they cannot be mounted.
const filesVariable = "MUSTER_FILES"

// ownDirs are the directories that hold nothing but a task's files. They are mounted as a
// whole, so that a replaced file is seen at once.
func ownDirs() []string { return []string{"/run/secrets", "/run/configs"} }

// mounts returns how a task sees its files. All other directories of the node stay as they
// are, so a file in one of them must exist already.
func mounts(files []*sdk.File) ([]taskdir.Mount, error) {
	var all []taskdir.Mount
	for _, file := range files {
		m := taskdir.Mount{Source: file.GetSource(), Target: file.GetTarget()}
		if dir := path.Dir(file.GetTarget()); slices.Contains(ownDirs(), dir) {
			m = taskdir.Mount{Source: filepath.Join(filemount.Root(file), dir), Target: dir, Dir: true}
		} else if info, err := os.Stat(file.GetTarget()); err != nil || !info.Mode().IsRegular() {
			return nil, sdk.NodeFault(fmt.Errorf("there is no file %s on this node that one of the task's could be mounted over: create it, or use a target in /run/secrets or /run/configs", file.GetTarget()))
		}
		if !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	return all, nil
}

// planFiles adds the files of a task to what its supervisor must do.
func (e *Executor) planFiles(task *sdk.Task, spec *taskdir.Spec) error {
	if len(task.GetFiles()) == 0 {
		return nil
	}
	for _, file := range task.GetFiles() {
		if _, err := os.Stat(file.GetSource()); err != nil {
			return sdk.NodeFault(fmt.Errorf("file for %s: %w", file.GetTarget(), err))
		}
	}
	var err error
	if e.canEnterNetwork() == nil {
		spec.Mounts, err = mounts(task.GetFiles())
	} else {
		// The process cannot have mounts of its own.
		spec.Env = append(spec.Env, filesVariable+"="+filemount.Root(task.GetFiles()[0]))
	}
	return err
}

// Update implements [sdk.Updater]. A running task then sees the present content of its
// files.
func (e *Executor) Update(_ context.Context, task *sdk.Task, _ sdk.Handle) (sdk.Handle, error) {
	dir, err := e.find(task.GetId())
	if err != nil {
		return nil, err
	}
	spec, err := dir.Spec()
	if err != nil {
		return nil, notFound(task.GetId(), err)
	}
	files := slices.DeleteFunc(slices.Clone(task.GetFiles()), func(file *sdk.File) bool {
		return !slices.Contains(spec.Mounts, taskdir.Mount{Source: file.GetSource(), Target: file.GetTarget()})
	})
	if len(files) == 0 {
		return nil, nil
	}
	_, err = e.onCommand(dir, func(command *proc.Handle, pid int) error {
		if err := filemount.Refresh(pid, files); err != nil {
			return sdk.NodeFault(fmt.Errorf("show new files to the task: %w", err))
		}
		return nil
	})
	return nil, notFound(task.GetId(), err)
}

// Signal implements [sdk.Signaler].
func (e *Executor) Signal(_ context.Context, ref sdk.Ref, signal string) error {
	number := signals.Number(signal)
	if number == 0 {
		return sdk.SpecFault("signal", fmt.Errorf("there is no signal %q", signal))
	}
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	runs, err := e.onCommand(dir, func(command *proc.Handle, _ int) error { return command.Signal(number) })
	switch {
	case err != nil:
		return notFound(ref.TaskID, err)
	case !runs:
		return sdk.NotStarted(ref.TaskID)
	}
	return nil
}

// onCommand calls f with the main process of a task. It returns false if no process runs,
// and if the process ends during the call.
func (e *Executor) onCommand(dir taskdir.Dir, f func(command *proc.Handle, pid int) error) (bool, error) {
	run, err := runOf(dir)
	if err != nil || run == nil {
		return false, err
	}
	command, err := proc.Open(run.Command)
	if errors.Is(err, proc.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = f(command, run.Command.PID)
	if err != nil {
		if stat, statErr := proc.ReadStat(run.Command.PID); statErr != nil || stat.Starttime != run.Command.Start || stat.Zombie() {
			return false, command.Close()
		}
	}
	return true, errors.Join(err, command.Close())
}
