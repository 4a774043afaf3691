//go:build unix

// Package detached runs commands that outlive the executor that started them, as
// the contract asks it of tasks: a command is started at most once, however often
// that is tried and whenever the executor is killed; a later process knows
// whether it runs, and how it ended.
//
// What is known of a command is in a directory that is its own: "lock", which its
// processes hold while they run, so that the kernel says whether they do; "pid",
// that of the group that they are in; "exit", the exit code; and "log", all
// output. The caller makes it, and Remove removes it.
package detached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/musterhq/muster/plugins/sdk"
)

const (
	// wrapper runs the command and writes down how it ended. The lock is its
	// standard input. A signal that asks the group to end does not end it, and
	// does its work in the command, for a trap is not inherited.
	wrapper = `trap : HUP INT TERM; echo $$ >pid.new && mv pid.new pid || exit 1
"$@" </dev/null >log 2>&1
echo $? >exit.new && mv exit.new exit`
	// killed is the exit code of a command whose wrapper was killed before it
	// recorded one.
	killed = 128 + int(syscall.SIGKILL)
	// interval is how often is looked at what nothing tells of.
	interval = 10 * time.Millisecond
)

// Process is what is known of a command.
type Process struct {
	// State is sdk.Prepared for a command that was never started.
	State sdk.State
	// Status is nil for a command that was never started.
	Status *sdk.Status
	// EndedAt is zero for a command that has not ended.
	EndedAt time.Time
}

// Start starts the command, unless that was done before, and returns when it
// runs or has ended. The directory must be there and becomes the working
// directory; of the command its path, arguments and environment are taken.
func Start(ctx context.Context, dir string, cmd *exec.Cmd) (Process, error) {
	if cmd.Err != nil {
		return Process{}, cmd.Err
	}
	for {
		p, err := Look(dir)
		if err != nil || (p.State != sdk.Prepared && p.Status.GetPid() > 0) {
			return p, err
		}
		if p.State == sdk.Prepared {
			if err := launch(dir, cmd); err != nil {
				return Process{}, err
			}
		}
		if err := pause(ctx); err != nil {
			return Process{}, err
		}
	}
}

// launch starts the wrapper with the lock in its hands. If another process has that
// just now, nothing is done.
func launch(dir string, cmd *exec.Cmd) error {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of a command: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil || number(dir, "pid") > 0 {
		return nil
	}
	sh := exec.Command("/bin/sh", append([]string{"-c", wrapper, "sh", cmd.Path}, cmd.Args[1:]...)...)
	sh.Dir, sh.Env, sh.Stdin = dir, cmd.Env, lock
	sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sh.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	// It would stay as a zombie. No call waits for this: it lasts until the
	// command or this process ends.
	go func() { _ = sh.Wait() }()
	return nil
}

// Look says how it stands with the command.
func Look(dir string) (Process, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{State: sdk.Prepared}, nil
	}
	if err != nil {
		return Process{}, fmt.Errorf("open the lock of a command: %w", err)
	}
	defer func() { _ = lock.Close() }()
	// Those who look do not keep each other from it.
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil {
		return running(dir), nil
	}
	pid := number(dir, "pid")
	if pid == 0 {
		return Process{State: sdk.Prepared}, nil
	}
	exit := filepath.Join(dir, "exit")
	info, err := os.Stat(exit)
	if errors.Is(err, fs.ErrNotExist) {
		// A writer must be alone with it; if it is not, the next look
		// will do.
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return running(dir), nil
		}
		if number(dir, "pid") == 0 {
			return Process{State: sdk.Prepared}, nil
		}
		if err := errors.Join(os.WriteFile(exit+".new", []byte(strconv.Itoa(killed)), 0o600), os.Rename(exit+".new", exit)); err != nil {
			return Process{}, fmt.Errorf("write down that the command was killed: %w", err)
		}
		info, err = os.Stat(exit)
	}
	if err != nil {
		return Process{}, fmt.Errorf("look for the exit code: %w", err)
	}
	status := &sdk.Status{Id: strconv.Itoa(pid), Pid: int64(pid), ExitCode: int32(number(dir, "exit"))}
	return Process{State: sdk.Exited, Status: status, EndedAt: info.ModTime()}, nil
}

// running is a command whose lock is held. While it is being started its
// process is not known.
func running(dir string) Process {
	status := &sdk.Status{}
	if pid := number(dir, "pid"); pid > 0 {
		status.Id, status.Pid = strconv.Itoa(pid), int64(pid)
	}
	return Process{State: sdk.Running, Status: status}
}

// Wait returns when the command does not run: it has ended, or was never started.
func Wait(ctx context.Context, dir string) (Process, error) {
	for {
		p, err := Look(dir)
		if err != nil || p.State != sdk.Running {
			return p, err
		}
		if err := pause(ctx); err != nil {
			return Process{}, err
		}
	}
}

// Stop asks the command to end, with SIGTERM, and kills it when the grace period
// is over; at once if there is none. It returns as Wait does.
func Stop(ctx context.Context, dir string, grace time.Duration) (Process, error) {
	began, asked := time.Now(), false
	for {
		p, err := Look(dir)
		if err != nil || p.State != sdk.Running {
			return p, err
		}
		// A command that is just being started will have a process in a moment.
		if pid := int(p.Status.GetPid()); pid > 0 {
			switch {
			case time.Since(began) >= grace:
				err = syscall.Kill(-pid, syscall.SIGKILL)
			case !asked:
				asked = true
				err = syscall.Kill(-pid, syscall.SIGTERM)
			}
			if err != nil && !errors.Is(err, syscall.ESRCH) {
				return Process{}, fmt.Errorf("signal the processes of %d: %w", pid, err)
			}
		}
		if err := pause(ctx); err != nil {
			return Process{}, err
		}
	}
}

// Remove kills the command if it runs, and removes the directory.
func Remove(ctx context.Context, dir string) error {
	for {
		if _, err := Stop(ctx, dir, 0); err != nil {
			return err
		}
		removed, err := remove(dir)
		if removed || err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// remove removes the directory if no other process has the lock: a process that looks
// might write into it.
func remove(dir string) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err == nil {
		defer func() { _ = lock.Close() }()
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return false, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("open the lock of a command: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return false, fmt.Errorf("remove what is known of a command: %w", err)
	}
	return true, nil
}

func pause(ctx context.Context) error {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// number reads a file that holds one, 0 if there is none.
func number(dir, name string) int {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return 0
	}
	return n
}
