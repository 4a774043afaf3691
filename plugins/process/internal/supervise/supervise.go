//go:build linux

// Package supervise is the parent of a process task's command: a small process
// of its own that outlives the executor which started it, and the worker. It
// starts the command, keeps what it writes, passes signals on, and when the
// command has ended kills whatever the command left running and says how it
// ended. It holds the task's lock all the while, so that its death shows.
//
// It also runs the health checks of the command, one after the other, and writes down
// what they say. It stops a command that is unhealthy.
//
// It listens to two signals. SIGTERM: ask the command to stop. SIGUSR1: kill it.
package supervise

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/durable"
	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/logfile"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
)

// The signals that a supervisor listens to.
const (
	Stop = unix.SIGTERM
	Kill = unix.SIGUSR1
)

// LockFD is the file descriptor that holds the task's lock.
const LockFD = 3

// Bounds of what comes after the command's end.
const (
	// sweepTime is how long processes may take to die of SIGKILL. One that
	// hangs in the kernel may never do so.
	sweepTime = 30 * time.Second
	// drainTime is how long output may take to arrive once all is dead. A pipe
	// that was handed to a stranger may never end.
	drainTime = 2 * time.Second
)

// Run supervises the task in a directory until it has ended. The error says why
// it could not even say so.
func Run(dir taskdir.Dir) error {
	// The command dies with the thread that started it (Pdeathsig), and that
	// thread must live until this process ends.
	runtime.LockOSThread()
	// There is one of these for every task; next to nothing is allocated.
	debug.SetGCPercent(10)
	// The lock must not pass to the command, nor may what else this process
	// may have inherited.
	unix.CloseOnExec(LockFD)
	if err := unix.CloseRange(LockFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("keep open files from the command: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	signals := make(chan os.Signal, 64)
	// Hangup and interrupt are for terminals; a signal that is listened to is
	// back to its default in the command, an ignored one would stay ignored.
	signal.Notify(signals, Stop, Kill, unix.SIGCHLD, unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	defer signal.Stop(signals)

	self, err := proc.Identify(os.Getpid())
	if err != nil {
		return err
	}
	if err := dir.SetSupervisor(self); err != nil {
		return err
	}
	if err := dir.Reserve(); err != nil {
		return err
	}
	spec, err := dir.Spec()
	if err != nil {
		return err
	}
	log, err := logfile.Create(string(dir), spec.LogMax)
	if err != nil {
		return err
	}
	s := &supervisor{dir: dir, spec: spec, log: log, signals: signals}
	exit, err := s.supervise()
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	return s.say(exit)
}

// exitRetry is how often it is tried to write down how a task ended.
const exitRetry = time.Second

// say writes down how the task ended. If the disk does not take it, the task does
// not seem to have ended: anything else would stay wrong.
func (s *supervisor) say(exit taskdir.Exit) error {
	for {
		err := s.dir.SetExit(exit)
		if err == nil {
			return nil
		}
		select {
		case signal := <-s.signals:
			if signal == Kill {
				return err
			}
		case <-time.After(exitRetry):
		}
	}
}

type supervisor struct {
	dir     taskdir.Dir
	spec    taskdir.Spec
	log     *logfile.Writer
	signals <-chan os.Signal

	// leader is the command's process id, and that of its group, until it has
	// been waited for. Until then the id cannot come to mean another process.
	leader int
	status unix.WaitStatus
	ended  time.Time
	group  *cgroup.Group
	output []*os.File
	copies sync.WaitGroup
	// checks are the health checks, nil if the task has none.
	checks *checks
	// unhealthy is set if the task is stopped because of them.
	unhealthy *taskdir.Health
}

// supervise runs the command and returns how it ended.
func (s *supervisor) supervise() (taskdir.Exit, error) {
	if err := s.dir.Begin(); err != nil {
		return taskdir.Exit{}, err
	}
	if err := s.start(); err != nil {
		exit := taskdir.Exit{At: time.Now(), Code: startFailed, StartError: err.Error()}
		s.end()
		return exit, nil
	}
	var grace <-chan time.Time
	for s.leader != 0 {
		select {
		case signal := <-s.signals:
			switch signal {
			case unix.SIGCHLD:
				s.reap()
			case Stop:
				s.stop()
			case Kill:
				s.kill()
			}
		case <-s.checks.due():
			s.checks.tick(s)
		case result := <-s.checks.results():
			s.checks.ended(result)
		case <-grace:
			s.kill()
		}
		if health := s.checks.conclude(s.dir); health != nil && s.leader != 0 {
			s.unhealthy = health
			grace = time.After(s.spec.Grace)
			s.stop()
		}
	}
	exit := taskdir.Exit{At: s.ended, Code: exitCode(s.status), OOMKilled: s.group.OOMKilled(), Unhealthy: s.unhealthy}
	s.end()
	return exit, nil
}

// stop asks the command to stop. A task that is stopping is not checked.
func (s *supervisor) stop() {
	s.checks.stop()
	s.signal(s.spec.StopSignal)
	// One that is halted would hear nothing before it continues.
	s.signal(unix.SIGCONT)
}

// kill kills the command.
func (s *supervisor) kill() {
	s.checks.stop()
	s.signal(unix.SIGKILL)
	s.group.Kill()
}

// startFailed is the exit code of a command that could not be started, as
// shells have it.
const startFailed = 127

// start starts the command.
func (s *supervisor) start() error {
	group, err := cgroup.Detect(cgroup.DefaultRoot).Create(s.spec.ID, s.spec.Limits)
	if err != nil {
		return err
	}
	s.group = group
	files, err := s.openOutput()
	if err != nil {
		return err
	}
	defer func() {
		for _, file := range files {
			// The command has its own.
			_ = file.Close()
		}
	}()
	if s.spec.Networked || len(s.spec.Mounts) > 0 {
		if err := ownMounts(); err != nil {
			return err
		}
	}
	if s.spec.Networked {
		if err := enterNetwork(s.dir); err != nil {
			return err
		}
	}
	if err := mountFiles(s.spec.Mounts); err != nil {
		return err
	}
	at := time.Now()
	if s.spec.Check != nil {
		if err := s.dir.SetHealth(taskdir.Health{Retries: s.spec.Check.Retries}); err != nil {
			return err
		}
	}
	s.leader, err = s.fork(s.spec.Path, s.spec.Args, files, &syscall.SysProcAttr{Setsid: true})
	if err != nil {
		if s.leader != 0 {
			// It runs, but not within its limits.
			s.signal(unix.SIGKILL)
		}
		return fmt.Errorf("start %s: %w", s.spec.Path, err)
	}
	id, err := proc.Identify(s.leader)
	if err != nil {
		// It is this process's child and not waited for, so it must be there.
		s.signal(unix.SIGKILL)
		return err
	}
	if err := s.dir.SetRun(taskdir.Run{Command: id, At: at, Cgroups: group.Dirs()}); err != nil {
		s.signal(unix.SIGKILL)
		return err
	}
	if s.spec.Check != nil {
		s.checks = newChecks(*s.spec.Check)
	}
	return nil
}

// fork starts a program as the task's user, in its directory, control groups and
// network. The process may run even if there is an error: then it is not within its
// limits. The goroutine must be locked to the thread that has entered the network.
func (s *supervisor) fork(path string, args []string, files []*os.File, attributes *syscall.SysProcAttr) (pid int, err error) {
	attributes.Pdeathsig = syscall.SIGKILL
	if user := s.spec.User; user != nil {
		attributes.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
	}
	unified, err := s.group.Unified()
	if err != nil {
		return 0, err
	}
	if unified != nil {
		defer func() { _ = unified.Close() }()
		attributes.UseCgroupFD, attributes.CgroupFD = true, int(unified.Fd())
	}
	var fds []uintptr
	for _, file := range files {
		fds = append(fds, file.Fd())
	}
	err = s.group.Start(s.spec.Limits, func() error {
		pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{Dir: s.spec.Dir, Env: s.spec.Env, Files: fds, Sys: attributes})
		return err
	})
	return pid, err
}

// openOutput opens the command's standard files, and copies what it writes into
// the log.
func (s *supervisor) openOutput() ([]*os.File, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open the command's input: %w", err)
	}
	files := []*os.File{null}
	for _, stream := range []logfile.Stream{logfile.Stdout, logfile.Stderr} {
		ours, theirs, err := os.Pipe()
		if err != nil {
			return files, fmt.Errorf("open the command's output: %w", err)
		}
		files = append(files, theirs)
		s.output = append(s.output, ours)
		s.copies.Go(func() { s.log.Copy(stream, ours) })
	}
	return files, nil
}

// signal signals the command and all of its process group.
func (s *supervisor) signal(signal unix.Signal) {
	if s.leader != 0 {
		// That all of them are zombies is as well.
		_ = unix.Kill(-s.leader, signal)
	}
}

// reap waits for every child that has ended, and reports whether there are
// others. The command's orphans become children of this process.
func (s *supervisor) reap() (more bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false
		case pid == 0:
			return true
		case pid == s.leader:
			s.leader, s.status, s.ended = 0, status, time.Now()
		default:
			s.checks.reaped(pid, status)
		}
	}
}

// end kills what the command left running, and takes in the last of its output.
func (s *supervisor) end() {
	s.checks.stop()
	var failed error
	deadline := time.NewTimer(sweepTime)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for s.reap() {
		if s.group == nil || !s.group.Kill() {
			failed = errors.Join(failed, killDescendants())
		}
		select {
		case <-s.signals:
			continue
		case <-again.C:
			continue
		case <-deadline.C:
			failed = errors.Join(failed, errors.New("processes of the task do not die of SIGKILL"))
		}
		break
	}
	for _, file := range s.output {
		if err := file.SetReadDeadline(time.Now().Add(drainTime)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("take in the last output: %w", err))
		}
	}
	s.copies.Wait()
	if s.group != nil {
		failed = errors.Join(failed, s.group.Remove())
	}
	if failed != nil {
		// None of this changes how the task ended.
		fmt.Fprintf(os.Stderr, "%s %v\n", time.Now().Format(time.RFC3339), failed)
	}
}

// killDescendants kills all processes beneath this one, where no control group
// can do it.
func killDescendants() error {
	found, err := proc.Descendants(os.Getpid())
	if err != nil {
		return err
	}
	boot, err := proc.Boot()
	if err != nil {
		return err
	}
	var failed error
	for _, stat := range found {
		failed = errors.Join(failed, proc.Kill(proc.Identity{PID: stat.PID, Start: stat.Starttime, Boot: boot}))
	}
	return failed
}

func exitCode(status unix.WaitStatus) int32 {
	if status.Signaled() {
		return 128 + int32(status.Signal())
	}
	return int32(status.ExitStatus())
}

// Arg is the argument that makes an executor's program a supervisor.
const Arg = "supervise-task"

// Requested tells whether the arguments of a program make it a supervisor, and
// of which task.
func Requested(args []string) (taskdir.Dir, bool) {
	if len(args) != 3 || args[1] != Arg {
		return "", false
	}
	return taskdir.Dir(args[2]), true
}

// Spawn makes this program the supervisor of a task, in a process of its own
// that belongs to no session of ours. The lock is handed on to it.
func Spawn(dir taskdir.Dir, lock *os.File) (*os.Process, error) {
	process, err := durable.Start(durable.Process{
		Args: []string{"muster-task", Arg, string(dir)},
		// One processor is more than it needs.
		Env:   []string{"GOMAXPROCS=1"},
		Log:   filepath.Join(string(dir), taskdir.SupervisorLog),
		Files: []*os.File{lock},
	})
	if err != nil {
		err = fmt.Errorf("start the supervisor: %w", err)
	}
	return process, err
}
