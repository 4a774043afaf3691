// Package process runs programs for tests: a daemon until it is told to end, with its
// output in a file, or one command of Docker.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stopTimeout bounds the orderly end of a process, on a machine that is busy.
const stopTimeout = 2 * time.Minute

// Config says what to start.
type Config struct {
	Name string
	// Log is the file that the process writes to.
	Log string
	// Command is the program and its arguments.
	Command []string
	// Env is added to the environment.
	Env []string
	// Attr may give the process namespaces, or a signal for the end of its parent.
	// Default: a process group of its own, which keeps an interrupt at the terminal from
	// it, so that it is stopped in order.
	Attr *syscall.SysProcAttr
}

// Process is a program that runs, or has ended.
type Process struct {
	Name string
	// Log is the file that it writes to.
	Log   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Start starts a program. The caller ends it.
func Start(cfg Config) (*Process, error) {
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", cfg.Name, err)
	}
	defer func() { _ = log.Close() }()
	p := &Process{Name: cfg.Name, Log: cfg.Log, cmd: exec.Command(cfg.Command[0], cfg.Command[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), cfg.Env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = cfg.Attr
	if cfg.Attr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// StartFor starts a program that ends with a test. If the test fails, it shows the end of
// the log.
func StartFor(t testing.TB, cfg Config) *Process {
	t.Helper()
	if cfg.Log == "" {
		cfg.Log = filepath.Join(t.TempDir(), cfg.Name+".log")
	}
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%s wrote last:\n%s", p.Name, p.Tail())
		}
	})
	return p
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.ended }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// ExitCode waits for the end and returns the exit code, -1 if a signal ended the process.
func (p *Process) ExitCode() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// Kill kills the process and waits for its end.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.ended
	return nil
}

// Stop ends the process in order. One that does not end in time is killed, and that is an
// error.
func (p *Process) Stop() error { return p.End(syscall.SIGTERM) }

// End is Stop with another signal.
func (p *Process) End(signal syscall.Signal) error {
	if p.Ended() {
		return nil
	}
	if err := errors.Join(p.Signal(syscall.SIGCONT), p.Signal(signal)); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not end within %v", p.Name, stopTimeout), p.Kill())
	}
}

// Signal sends a signal. A process that has ended takes it without an error.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// tail is how much of a log Tail returns.
const tail = 8 << 10

// Tail returns the end of the process's log.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-tail):]))
}
