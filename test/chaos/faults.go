package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/test/kit/network"
)

// kind is a kind of fault. do makes one, undoes it, and says what it befell: ""
// if there was nothing.
type kind struct {
	name   string
	weight int
	do     func(*maker, context.Context) (string, error)
}

// kinds are all kinds of faults, with how often each comes relative to others.
var kinds = []kind{
	{"kill manager", 20, func(m *maker, ctx context.Context) (string, error) { return m.restartManager(ctx, syscall.SIGKILL) }},
	{"terminate manager", 10, func(m *maker, ctx context.Context) (string, error) { return m.restartManager(ctx, syscall.SIGTERM) }},
	{"stop manager", 10, func(m *maker, ctx context.Context) (string, error) { return m.stop(ctx, m.take(m.s.Names()...)) }},
	{"slow manager", 5, func(m *maker, ctx context.Context) (string, error) { return m.slow(ctx, m.take(m.s.Names()...)) }},
	{"kill all managers", 1, (*maker).killManagers},
	{"kill worker", 10, (*maker).killWorker},
	{"stop worker", 6, func(m *maker, ctx context.Context) (string, error) { return m.stop(ctx, m.take(m.victims()...)) }},
	{"slow worker", 4, func(m *maker, ctx context.Context) (string, error) { return m.slow(ctx, m.take(m.victims()...)) }},
	{"cut worker off", 6, (*maker).cutWorker},
	{"kill plugin", 6, (*maker).killPlugin},
	{"kill task", 6, (*maker).killTask},
	{"kill Consul server", 6, (*maker).killConsul},
	{"stop Consul server", 5, (*maker).stopConsul},
	{"kill all Consul servers", 1, (*maker).killAllConsul},
	{"cut managers' host off", 5, (*maker).cutManagers},
}

// A fault of the network needs all of it, and one of Consul all servers: more than
// one at once would leave no majority for most of the time.
const (
	allOfNetwork = "the network"
	consul       = "Consul"
)

// startTimeout bounds the start of a program on a machine that is busy.
const startTimeout = 20 * time.Second

func (m *maker) restartManager(ctx context.Context, by syscall.Signal) (string, error) {
	name := m.take(m.s.Names()...)
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	p := m.s.Process(name)
	if by == syscall.SIGKILL {
		if err := p.Kill(); err != nil {
			return name, err
		}
	} else if err := p.Stop(); err != nil {
		return name, err
	} else if code := p.ExitCode(); code != 0 {
		return name, errors.New("it ended with code " + strconv.Itoa(code))
	}
	_ = backoff.Sleep(ctx, m.between(0, 5*time.Second))
	return name, m.startManager(ctx, name)
}

// startManager starts a manager and waits until it listens: a program that has
// only just been started does not know yet how to end in order.
func (m *maker) startManager(ctx context.Context, name string) error {
	if err := m.s.StartManager(name); err != nil {
		return err
	}
	return await(context.WithoutCancel(ctx), startTimeout, func(ctx context.Context) error {
		conn, err := m.s.net.DialContext(ctx, "tcp", m.s.Address(name))
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

func (m *maker) killManagers(ctx context.Context) (string, error) {
	names := m.s.Names()
	if !m.takeAll(names...) {
		return "", nil
	}
	defer m.giveBack(names...)
	var errs []error
	for _, name := range names {
		errs = append(errs, m.s.Process(name).Kill())
	}
	_ = backoff.Sleep(ctx, m.between(0, 3*time.Second))
	for _, name := range names {
		errs = append(errs, m.startManager(ctx, name))
	}
	return "all", errors.Join(errs...)
}

// stop stops a process as it stands for longer or shorter than its session lives.
func (m *maker) stop(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	p := m.s.Process(name)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return name, err
	}
	_ = backoff.Sleep(ctx, m.between(time.Second, 10*time.Second))
	return name, p.Signal(syscall.SIGCONT)
}

// slow lets a process run only part of the time.
func (m *maker) slow(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	p := m.s.Process(name)
	for end := time.Now().Add(m.between(2*time.Second, 8*time.Second)); time.Now().Before(end) && ctx.Err() == nil; {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return name, err
		}
		_ = backoff.Sleep(ctx, m.between(20*time.Millisecond, 200*time.Millisecond))
		if err := p.Signal(syscall.SIGCONT); err != nil {
			return name, err
		}
		_ = backoff.Sleep(ctx, m.between(5*time.Millisecond, 50*time.Millisecond))
	}
	return name, nil
}

func (m *maker) killWorker(ctx context.Context) (string, error) {
	name := m.take(m.victims()...)
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	if err := m.s.Process(name).Kill(); err != nil {
		return name, err
	}
	_ = backoff.Sleep(ctx, m.between(0, 10*time.Second))
	return name, m.s.StartNode(name)
}

// cutWorker cuts a worker's host off from all others.
func (m *maker) cutWorker(ctx context.Context) (string, error) {
	name := m.take(m.victims()...)
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	return name, m.cut(ctx, m.s.workers[name])
}

// cutManagers cuts a host off that has a replica of each manager and one of
// Consul's servers, and some workers with it.
func (m *maker) cutManagers(ctx context.Context) (string, error) {
	number := m.intN(len(m.s.managers))
	off := []*network.Host{m.s.managers[number]}
	for _, name := range m.victims() {
		if m.intN(3) == 0 {
			off = append(off, m.s.workers[name])
		}
	}
	return "host " + strconv.Itoa(number+1) + ", " + strconv.Itoa(len(off)-1) + " workers", m.cut(ctx, off...)
}

// cut cuts some hosts off from all others for a while.
func (m *maker) cut(ctx context.Context, off ...*network.Host) error {
	if m.take(allOfNetwork) == "" {
		return nil
	}
	defer m.giveBack(allOfNetwork)
	var rest []*network.Host
	for _, h := range m.s.net.Hosts() {
		if !contains(off, h) {
			rest = append(rest, h)
		}
	}
	err := m.s.net.Cut(ctx, off, rest)
	_ = backoff.Sleep(ctx, m.between(time.Second, 12*time.Second))
	// Whole again also when ctx has ended.
	return errors.Join(err, m.s.net.Heal(context.WithoutCancel(ctx)))
}

func contains(hosts []*network.Host, h *network.Host) bool {
	for _, other := range hosts {
		if other == h {
			return true
		}
	}
	return false
}

// killPlugin kills an executor of a worker, whose tasks must not notice.
func (m *maker) killPlugin(context.Context) (string, error) {
	name := m.take(m.victims()...)
	if name == "" {
		return "", nil
	}
	defer m.giveBack(name)
	all, err := m.s.Machine()
	if err != nil {
		return name, err
	}
	for _, p := range all {
		// The supervisors of tasks have another name, and nothing of the worker's
		// data directory as their own.
		if strings.Contains(p.Program, "/plugins/muster-executor-") && p.Parent == m.s.Process(name).PID() {
			return name, kill(p.PID)
		}
	}
	return "", nil
}

// killTask kills the process of a task, which then is run again.
func (m *maker) killTask(context.Context) (string, error) {
	there, err := m.s.TaskProcesses()
	if err != nil {
		return "a task", err
	}
	for id, ps := range there {
		if ps[0].Node != m.s.Nodes[quiet] {
			return id[:12], kill(ps[0].PID)
		}
	}
	return "", nil
}

func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return os.NewSyscallError("kill", err)
	}
	return nil
}

func (m *maker) killConsul(ctx context.Context) (string, error) {
	if m.take(consul) == "" {
		return "", nil
	}
	defer m.giveBack(consul)
	s := m.s.Servers.Servers()[m.intN(consulServers)]
	if err := s.Kill(); err != nil {
		return s.Node, err
	}
	_ = backoff.Sleep(ctx, m.between(0, 8*time.Second))
	return s.Node, s.Start()
}

func (m *maker) stopConsul(ctx context.Context) (string, error) {
	if m.take(consul) == "" {
		return "", nil
	}
	defer m.giveBack(consul)
	s := m.s.Servers.Servers()[m.intN(consulServers)]
	if err := s.Pause(); err != nil {
		return s.Node, err
	}
	_ = backoff.Sleep(ctx, m.between(time.Second, 12*time.Second))
	return s.Node, s.Resume()
}

func (m *maker) killAllConsul(ctx context.Context) (string, error) {
	if m.take(consul) == "" {
		return "", nil
	}
	defer m.giveBack(consul)
	return "all", m.consulAway(ctx, m.between(time.Second, 20*time.Second))
}

// calmBefore is how long there are other faults before Consul is gone.
const calmBefore = 20 * time.Second

// consulGone has Consul gone as a whole for long, while other faults continue.
func (m *maker) consulGone(ctx context.Context) (string, error) {
	_ = backoff.Sleep(ctx, calmBefore)
	for m.take(consul) == "" {
		if ctx.Err() != nil {
			return "", nil
		}
		_ = backoff.Sleep(ctx, 100*time.Millisecond)
	}
	defer m.giveBack(consul)
	return "all", m.consulAway(ctx, m.away)
}

func (m *maker) consulAway(ctx context.Context, d time.Duration) error {
	if err := m.s.Servers.Kill(); err != nil {
		return err
	}
	_ = backoff.Sleep(ctx, d)
	var errs []error
	for _, s := range m.s.Servers.Servers() {
		errs = append(errs, s.Start())
	}
	return errors.Join(errs...)
}
