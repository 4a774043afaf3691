package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin/runner"
)

// pipesLinger is how long the output of a process that has ended is still read.
// What it started may have inherited the pipes and hold them open forever.
const pipesLinger = time.Second

// justNow is how long the end of a process may lag behind that of its
// connection, on a machine that is busy.
const justNow = time.Second

// process is the process of a plugin, for go-plugin. Other than go-plugin's
// own, it tells at once when it has ended, even if others hold its pipes, and
// can be killed without asking it first.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *os.File
	// exited is closed when the process has ended, and err says how.
	exited chan struct{}
	err    error
	// closed is closed when the pipes are.
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	started bool
	killed  bool
}

var _ runner.Runner = (*process)(nil)

// newProcess returns a process that has not been started. It is started from the
// given path, if any, under the name of the plugin's file.
func newProcess(f file, from string, env []string, dir string) *process {
	cmd := exec.Command(f.path, f.args...)
	if from != "" {
		cmd.Path = from
	}
	cmd.Env = env
	cmd.Dir = dir
	// A plugin ends when its worker says so, and not when a user presses
	// Ctrl-C in the terminal of both.
	separate(cmd)
	return &process{cmd: cmd, exited: make(chan struct{}), closed: make(chan struct{})}
}

// Start starts the process.
func (p *process) Start(context.Context) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return errEnding
	}
	var outw, errw *os.File
	if p.stdout, outw, err = os.Pipe(); err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	if p.stderr, errw, err = os.Pipe(); err != nil {
		return errors.Join(fmt.Errorf("make pipe: %w", err), p.stdout.Close(), outw.Close())
	}
	p.cmd.Stdout, p.cmd.Stderr = outw, errw
	err = p.cmd.Start()
	err = errors.Join(err, outw.Close(), errw.Close())
	if p.cmd.Process == nil {
		return errors.Join(err, p.stdout.Close(), p.stderr.Close())
	}
	p.started = true
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
		timer := time.NewTimer(pipesLinger)
		defer timer.Stop()
		select {
		case <-p.closed:
		case <-timer.C:
			p.closePipes()
		}
	}()
	return err
}

// closePipes ends the reading of the process's output.
func (p *process) closePipes() {
	p.once.Do(func() {
		close(p.closed)
		_ = p.stdout.Close()
		_ = p.stderr.Close()
	})
}

// Wait returns when the process has ended.
func (p *process) Wait(context.Context) error {
	<-p.exited
	p.closePipes()
	return p.err
}

// Kill kills the process, and returns when it has ended. What the process
// started is left alone: those may be tasks.
func (p *process) Kill(context.Context) error {
	p.mu.Lock()
	p.killed = true
	started := p.started
	p.mu.Unlock()
	if !started {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.cmd.Process.Pid, err)
	}
	<-p.exited
	return nil
}

// ended says how the process ended; nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.exited:
		if p.err == nil {
			return errors.New("process ended: exit status 0")
		}
		return fmt.Errorf("process ended: %w", p.err)
	default:
		return nil
	}
}

// justEnded is ended for a process that may be about to: where its connection
// has broken, its end is a moment away.
func (p *process) justEnded() error {
	timer := time.NewTimer(justNow)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
	}
	return p.ended()
}

// The rest of what go-plugin wants to know.

func (p *process) Stdout() io.ReadCloser           { return p.stdout }
func (p *process) Stderr() io.ReadCloser           { return p.stderr }
func (p *process) Name() string                    { return p.cmd.Path }
func (p *process) Diagnose(context.Context) string { return "" }

func (p *process) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return ""
	}
	return strconv.Itoa(p.cmd.Process.Pid)
}

func (p *process) PluginToHost(network, address string) (string, string, error) {
	return network, address, nil
}

func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
