// Package testcluster runs a Muster cluster as a user does, for tests and
// measurements: every daemon is a process of its own, started from the one
// binary, over a real Consul; or all managers are one muster dev.
package testcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/internal/kv/consultest"
)

// stopTimeout bounds the orderly end of a process.
const stopTimeout = 30 * time.Second

// managers are the manager daemons, in the order in which they are started.
var managers = [...]string{"orchestratord", "allocatord", "schedulerd", "dispatcherd", "apid"}

// Managers returns the names of the manager daemons.
func Managers() []string { return managers[:] }

// Cluster is a cluster that runs.
type Cluster struct {
	// API and REST are apid's addresses, Dispatcher is dispatcherd's.
	API, REST, Dispatcher string
	// Consul is nil for a cluster on the embedded store.
	Consul *consultest.Server

	binary string
	dir    string
	// args are further flags of the managers.
	args map[string][]string
	// addresses holds each manager's listener, so that a restart gets the same;
	// that for its operations is under "ops/" and its name.
	addresses map[string]string
	processes map[string]*Process
}

// Process is one of a cluster's processes.
type Process struct {
	Name string
	// Log is the file that it writes to.
	Log   string
	args  []string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Config says what to start.
type Config struct {
	// Binary is muster's.
	Binary string
	// Dir keeps logs and data.
	Dir string
	// Embedded runs all managers in one muster dev, kept in memory.
	Embedded bool
	// OnDisk keeps the embedded store in a file: StorePath.
	OnDisk bool
	// Workers is how many workers muster dev runs within itself.
	Workers int
	// Args are further flags of the managers, by their names; "dev" is one.
	Args map[string][]string
}

// StorePath is where a cluster in a directory keeps its embedded store, if on
// disk.
func StorePath(dir string) string { return filepath.Join(dir, "dev", "store.db") }

// Start starts the managers of a cluster and waits until they answer. Whoever
// calls it calls Stop.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c := &Cluster{binary: cfg.Binary, dir: cfg.Dir, args: cfg.Args, addresses: map[string]string{}, processes: map[string]*Process{}}
	names := []string{"rest", "ops/dev"}
	for _, name := range managers {
		names = append(names, name, "ops/"+name)
	}
	free, err := freeAddresses(len(names))
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		c.addresses[name] = free[i]
	}
	c.API, c.REST, c.Dispatcher = c.addresses["apid"], c.addresses["rest"], c.addresses["dispatcherd"]
	if err := c.startManagers(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) startManagers(ctx context.Context, cfg Config) error {
	if cfg.Embedded {
		args := []string{"dev", "--workers", strconv.Itoa(cfg.Workers), "--listen", c.API, "--rest-listen", c.REST, "--dispatcher-listen", c.Dispatcher, "--ops-listen", c.Ops("dev")}
		if cfg.OnDisk {
			args = append(args, "--data-dir", filepath.Dir(StorePath(c.dir)))
		}
		if _, err := c.Run("dev", append(args, c.args["dev"]...)...); err != nil {
			return err
		}
		return c.waitFor(ctx, c.API, c.REST, c.Dispatcher)
	}
	var err error
	if c.Consul, err = consultest.Run(c.dir); err != nil {
		return err
	}
	for _, name := range managers {
		if err := c.StartManager(name); err != nil {
			return err
		}
	}
	return c.waitFor(ctx, c.API, c.REST, c.Dispatcher)
}

// StartManager starts a manager daemon, again after it was killed, for
// example.
func (c *Cluster) StartManager(name string) error {
	args := []string{name, "--listen", c.addresses[name], "--ops-listen", c.Ops(name), "--consul-address", c.Consul.Address}
	if name == "apid" {
		args = append(args, "--rest-listen", c.REST)
	}
	_, err := c.Run(name, append(args, c.args[name]...)...)
	return err
}

// Ops returns the address at which a manager, or "dev", serves its operations:
// metrics, health, profiles.
func (c *Cluster) Ops(name string) string { return c.addresses["ops/"+name] }

// StartWorker starts a worker, again after it was stopped, for example: its
// name is its data directory's too. Extra are further flags.
func (c *Cluster) StartWorker(name string, extra ...string) (*Process, error) {
	args := append([]string{"workerd", "--hostname", name, "--dispatcher", c.Dispatcher, "--ops-listen=", "--data-dir", filepath.Join(c.dir, name)}, extra...)
	return c.Run(name, args...)
}

// Run starts muster with some arguments, as a process of the cluster.
func (c *Cluster) Run(name string, args ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(c.dir, name+".log"), args: args}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(c.binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A process group of its own keeps an interrupt at the terminal from it: it is
	// stopped in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.ended = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	c.processes[name] = p
	return p, nil
}

// Process returns a process of the cluster by its name.
func (c *Cluster) Process(name string) *Process { return c.processes[name] }

// waitFor waits until something listens at all addresses.
func (c *Cluster) waitFor(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, a := range addresses {
		for {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
			if err == nil {
				_ = conn.Close()
				break
			}
			for _, p := range c.processes {
				if p.Ended() {
					return fmt.Errorf("%s has ended:\n%s", p.Name, p.Tail())
				}
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("nothing listens at %s: %w", a, ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}

// Stop ends all processes in order: workers, then managers, then Consul.
func (c *Cluster) Stop() error {
	var errs []error
	manager := map[string]bool{"dev": true}
	for _, m := range managers {
		manager[m] = true
	}
	for _, workers := range []bool{true, false} {
		for name, p := range c.processes {
			if manager[name] != workers {
				errs = append(errs, p.Stop())
			}
		}
	}
	if c.Consul != nil {
		errs = append(errs, c.Consul.Stop())
	}
	return errors.Join(errs...)
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// ExitCode returns the exit code of a process that has ended, -1 if a signal
// ended it.
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

// Stop ends the process in order. One that does not end in time is killed, and
// that is an error.
func (p *Process) Stop() error {
	if p.Ended() {
		return nil
	}
	if err := errors.Join(p.Signal(syscall.SIGCONT), p.Signal(syscall.SIGTERM)); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not end within %v", p.Name, stopTimeout), p.Kill())
	}
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Tail returns the end of the process's log.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// freeAddresses returns addresses that nobody listens at, each another one.
func freeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}
