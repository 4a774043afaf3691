//go:build linux

package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/process/internal/supervise"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// ErrBusy means that another process of this executor works on the task. It is returned as
// a temporary error.
var ErrBusy = errors.New("another process of this executor is at work on the task")

// signalKilled is the exit code of a command that SIGKILL ended.
const signalKilled = 128 + int32(unix.SIGKILL)

// Wait implements [sdk.Executor].
func (e *Executor) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	if err := e.supervisorGone(ctx, dir); err != nil {
		return nil, notFound(ref.TaskID, err)
	}
	run, exit, err := e.known(dir, ref)
	if err != nil {
		return nil, err
	}
	if exit == nil || (run == nil && exit.Lost == "") {
		return nil, sdk.NotStarted(ref.TaskID)
	}
	said, err := status(dir, run, exit)
	if err != nil {
		return nil, notFound(ref.TaskID, err)
	}
	if said == nil {
		said = &sdk.Status{ExitCode: exit.Code}
	}
	ended := &sdk.Ended{Status: said, At: exit.At, Error: exit.Lost}
	if exit.Unhealthy != nil {
		ended.Error = unhealthy(exit).Error()
	}
	return ended, nil
}

// Shutdown implements [sdk.Executor].
func (e *Executor) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	spec, err := dir.Spec()
	if err != nil && !errors.Is(err, taskdir.ErrDamaged) {
		return nil, notFound(ref.TaskID, err)
	}
	if grace == nil {
		grace = &spec.Grace
	}
	if *grace > 0 {
		within, cancel := context.WithTimeout(ctx, *grace)
		defer cancel()
		err := e.signal(within, dir, supervise.Stop)
		if err == nil {
			err = e.supervisorGone(within, dir)
		}
		if err != nil && within.Err() == nil {
			return nil, notFound(ref.TaskID, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return e.Terminate(ctx, ref)
}

// Terminate implements [sdk.Executor].
func (e *Executor) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	if err := e.kill(ctx, dir); err != nil {
		return nil, notFound(ref.TaskID, err)
	}
	run, exit, err := e.known(dir, ref)
	if err != nil {
		return nil, err
	}
	return status(dir, run, exit)
}

// known returns a task's command and its end, as far as they are known. Either may be nil.
func (e *Executor) known(dir taskdir.Dir, ref sdk.Ref) (*taskdir.Run, *taskdir.Exit, error) {
	exit, err := e.outcome(dir)
	if err != nil {
		return nil, nil, notFound(ref.TaskID, err)
	}
	run, err := runOf(dir)
	return run, exit, err
}

// runOf returns what is known of the running command, or nil.
func runOf(dir taskdir.Dir) (*taskdir.Run, error) { return readable(dir.Run()) }

// exitOf returns how the task ended, or nil.
func exitOf(dir taskdir.Dir) (*taskdir.Exit, error) { return readable(dir.Exit()) }

// readable treats a damaged file as missing.
func readable[T any](content *T, err error) (*T, error) {
	if errors.Is(err, taskdir.ErrDamaged) {
		return nil, nil
	}
	return content, err
}

// Remove implements [sdk.Executor].
func (e *Executor) Remove(ctx context.Context, ref sdk.Ref) error {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	if err := e.kill(ctx, dir); err != nil {
		return notFound(ref.TaskID, err)
	}
	lock, err := dir.Lock()
	if err != nil {
		return notFound(ref.TaskID, err)
	}
	if lock == nil {
		return sdk.Temporary(ErrBusy, 0)
	}
	err = e.removeLocked(ctx, dir, ref.TaskID)
	return errors.Join(err, lock.Release())
}

func (e *Executor) removeLocked(ctx context.Context, dir taskdir.Dir, id string) error {
	// A directory that cannot be read can still be removed.
	if exit, err := dir.Exit(); err != nil || exit == nil {
		if err := e.killStrays(ctx, id); err != nil {
			return err
		}
	}
	if err := e.cgroups().Find(id).Remove(); err != nil {
		return err
	}
	return e.root.Remove(dir)
}

// List implements [sdk.Executor].
func (e *Executor) List(_ context.Context, nodeID string) ([]sdk.Listed, error) {
	if err := e.open(); err != nil {
		return nil, err
	}
	dirs, err := e.root.List()
	if err != nil {
		return nil, err
	}
	var all []sdk.Listed
	for _, dir := range dirs {
		listed, node, err := e.look(dir, nodeID)
		if errors.Is(err, taskdir.ErrNotFound) {
			continue
		}
		if err != nil {
			// One directory that cannot be read must not hide the others.
			e.log.Warn("cannot read a task's directory", zap.String("dir", string(dir)), zap.Error(err))
			continue
		}
		if nodeID == "" || node == nodeID {
			all = append(all, listed)
		}
	}
	return all, nil
}

// look returns how far a task is, and the node that it was prepared for. If that node is no
// longer known, it returns the node that was asked for.
func (e *Executor) look(dir taskdir.Dir, nodeID string) (sdk.Listed, string, error) {
	spec, err := dir.Spec()
	if errors.Is(err, taskdir.ErrDamaged) {
		// The task is on this machine, whichever node it belonged to.
		spec, err = taskdir.Spec{NodeID: nodeID}, nil
	}
	if err != nil {
		return sdk.Listed{}, "", err
	}
	alive, err := dir.Locked()
	if err != nil {
		return sdk.Listed{}, "", err
	}
	var exit *taskdir.Exit
	if !alive {
		if exit, err = e.outcome(dir); err != nil {
			return sdk.Listed{}, "", err
		}
	}
	run, err := runOf(dir)
	if err != nil {
		return sdk.Listed{}, "", err
	}
	said, err := status(dir, run, exit)
	if err != nil {
		return sdk.Listed{}, "", err
	}
	listed := sdk.Listed{TaskID: dir.ID(), State: sdk.Prepared, Status: said}
	switch {
	case exit != nil:
		listed.State = sdk.Exited
	case alive:
		listed.State = sdk.Running
	}
	return listed, spec.NodeID, nil
}

// supervisorGone returns when no process holds the task's lock: before the task starts or
// after it ended.
func (e *Executor) supervisorGone(ctx context.Context, dir taskdir.Dir) error {
	for {
		held, err := onSupervisor(ctx, dir, func(h *proc.Handle) error { return h.Wait(ctx) })
		if err != nil || !held {
			return err
		}
	}
}

// onSupervisor calls act with a task's supervisor. It returns false if no process holds the
// task's lock. It waits for a supervisor that has just been started and has not written its
// identity yet, or that is about to release the lock.
func onSupervisor(ctx context.Context, dir taskdir.Dir, act func(*proc.Handle) error) (held bool, err error) {
	return poll(ctx, proc.ErrGone, func() (bool, error) {
		held, err := dir.Locked()
		if err != nil || !held {
			return false, err
		}
		handle, err := supervisor(dir)
		if err != nil {
			return true, err
		}
		return true, errors.Join(act(handle), handle.Close())
	})
}

// supervisor returns a handle of a task's supervisor, or ErrGone.
func supervisor(dir taskdir.Dir) (*proc.Handle, error) {
	id, err := dir.Supervisor()
	if err != nil {
		return nil, err
	}
	if id == nil {
		return nil, proc.ErrGone
	}
	return proc.Open(*id)
}

// signal signals a task's supervisor, if there is one.
func (e *Executor) signal(ctx context.Context, dir taskdir.Dir, signal unix.Signal) error {
	_, err := onSupervisor(ctx, dir, func(h *proc.Handle) error {
		if err := h.Signal(signal); !errors.Is(err, proc.ErrGone) {
			return err
		}
		return nil
	})
	return err
}

// kill ends a task at once, and returns when its supervisor has ended.
func (e *Executor) kill(ctx context.Context, dir taskdir.Dir) error {
	within, cancel := context.WithTimeout(ctx, e.killTime)
	defer cancel()
	err := e.signal(within, dir, supervise.Kill)
	if err == nil {
		err = e.supervisorGone(within, dir)
	}
	if err == nil || within.Err() == nil || ctx.Err() != nil {
		return err
	}
	e.log.Warn("a task's supervisor does not answer and is killed", zap.String("dir", string(dir)))
	if err := e.signal(ctx, dir, unix.SIGKILL); err != nil {
		return err
	}
	return e.supervisorGone(ctx, dir)
}

// outcome returns how a task ended whose supervisor has ended. It is nil for a task that
// was never begun.
func (e *Executor) outcome(dir taskdir.Dir) (*taskdir.Exit, error) {
	exit, err := exitOf(dir)
	if exit != nil || err != nil {
		return exit, err
	}
	return e.lost(dir)
}

// lost handles a task whose supervisor ended without writing how the task ended: the
// supervisor was killed, or the machine was restarted. It kills the task's remaining
// processes and records once that the task was lost. It returns nil for a task that was not
// begun, or that another process handles.
func (e *Executor) lost(dir taskdir.Dir) (*taskdir.Exit, error) {
	begun, err := dir.Begun()
	if err != nil {
		return nil, err
	}
	rebooted, err := rebooted(dir)
	if err != nil || (!begun && !rebooted) {
		return nil, err
	}
	lock, err := dir.Lock()
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, sdk.Temporary(ErrBusy, 0)
	}
	exit, err := e.lostLocked(dir)
	return exit, errors.Join(err, lock.Release())
}

func (e *Executor) lostLocked(dir taskdir.Dir) (*taskdir.Exit, error) {
	exit, err := exitOf(dir)
	if exit != nil || err != nil {
		return exit, err
	}
	exit = &taskdir.Exit{At: time.Now(), Code: signalKilled, Lost: "the task's supervisor was killed, and with it the task; how the task ended is not known"}
	rebooted, err := rebooted(dir)
	if err != nil {
		return nil, err
	}
	if rebooted {
		exit.Lost = "the machine was restarted while the task ran"
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.killTime)
	defer cancel()
	if err := e.killStrays(ctx, dir.ID()); err != nil {
		return nil, err
	}
	e.log.Warn("a task's supervisor was killed", zap.String("task", dir.ID()), zap.String("reason", exit.Lost))
	if err := dir.SetExit(*exit); err != nil {
		// The next caller finds the same.
		e.log.Warn("failed to record that a task was lost", zap.String("task", dir.ID()), zap.Error(err))
	}
	return exit, nil
}

// rebooted reports whether the machine was restarted since a task was started. If the
// supervisor's identity cannot be read, it was: only a machine that goes down leaves such a
// file.
func rebooted(dir taskdir.Dir) (bool, error) {
	id, err := dir.Supervisor()
	if errors.Is(err, taskdir.ErrDamaged) {
		return true, nil
	}
	if err != nil || id == nil {
		return false, err
	}
	boot, err := proc.Boot()
	return id.Boot != boot, err
}

// killStrays kills the processes that a dead supervisor left of its task. It finds them by
// their control group, and by the variable that all processes of a task have. It does not
// trust a recorded process id.
func (e *Executor) killStrays(ctx context.Context, id string) error {
	group := e.cgroups().Find(id)
	marker := taskdir.Spec{ID: id}.Marker()
	_, err := poll(ctx, errStrays, func() (any, error) {
		group.Kill()
		strays, err := findStrays(group, marker)
		if err != nil || len(strays) == 0 {
			return nil, err
		}
		for _, stray := range strays {
			if err := proc.Kill(stray); err != nil {
				return nil, err
			}
		}
		return nil, errStrays
	})
	if err != nil {
		return fmt.Errorf("kill what is left of task %s: %w", id, err)
	}
	return nil
}

// errStrays says that processes of a task were still there.
var errStrays = errors.New("processes of the task are left")

func findStrays(group *cgroup.Group, marker string) ([]proc.Identity, error) {
	boot, err := proc.Boot()
	if err != nil {
		return nil, err
	}
	inGroup, err := group.Processes()
	if err != nil {
		return nil, err
	}
	all, err := proc.All()
	if err != nil {
		return nil, err
	}
	grouped := map[int]bool{}
	for _, pid := range inGroup {
		grouped[pid] = true
	}
	var strays []proc.Identity
	for _, stat := range all {
		// A zombie is dead. Its parent reaps it.
		if stat.Zombie() || (!grouped[stat.PID] && !proc.HasVariable(stat.PID, marker)) {
			continue
		}
		strays = append(strays, proc.Identity{PID: stat.PID, Start: stat.Starttime, Boot: boot})
	}
	return strays, nil
}

// poll calls try, with pauses of startPoll, until it returns nil or an error other than
// again.
func poll[T any](ctx context.Context, again error, try func() (T, error)) (T, error) {
	return backoff.Retry(ctx, func() (T, error) {
		result, err := try()
		if err != nil && !errors.Is(err, again) {
			err = backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(startPoll)), backoff.WithMaxElapsedTime(0))
}
