//go:build linux

// Package process is an executor that runs commands as plain processes of its node.
//
// A task's command is the child of a supervisor (package supervise), a small process of the
// executor's own program that lives until the task ends. The executor keeps nothing in
// memory. All that is known of a task is in its directory (package taskdir). So the
// executor or its worker may be killed at any moment: the next process reads the
// directories and continues.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/supervise"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// Kind is the runtime kind of process tasks.
const Kind = "process"

// DefaultLogBytes is the size at which a task's log file is rotated. One older file is
// kept, so a task takes up to twice this size.
const DefaultLogBytes = 10 << 20

// noCgroups is the advice where limits cannot be enforced.
const noCgroups = "it needs control groups that it may write to: run the worker as root, with /sys/fs/cgroup writable"

// noNetworks is the advice where tasks cannot be attached to networks.
const noNetworks = "it needs CAP_SYS_ADMIN: run the worker as root"

// Config configures a process executor.
type Config struct {
	// Version is the version that the executor reports.
	Version string
	// StateDir holds the tasks' directories. It is created when it is first needed.
	StateDir string
	// LogBytes is the size of a task's log file; 0 means DefaultLogBytes.
	LogBytes int64
	Logger   *zap.Logger
}

// Executor runs process tasks.
type Executor struct {
	config Config
	root   taskdir.Root
	log    *zap.Logger
	// killTime is how long a supervisor may take to kill its task. After that the
	// supervisor itself has a fault, such as being stopped by a signal, and is killed. It
	// is longer than the supervisor waits for processes that do not die.
	killTime time.Duration

	// choosing is held while a port is chosen and until it is recorded.
	choosing sync.Mutex

	mu     sync.Mutex
	opened bool
	groups *cgroup.System
	// tried is true once networkless is known: the error if tasks cannot be attached to
	// networks here.
	tried       bool
	networkless error
}

var (
	_ sdk.Executor    = (*Executor)(nil)
	_ sdk.LogStreamer = (*Executor)(nil)
	_ sdk.Statser     = (*Executor)(nil)
	_ sdk.Networker   = (*Executor)(nil)
	_ sdk.Observer    = (*Executor)(nil)
	_ sdk.Updater     = (*Executor)(nil)
	_ sdk.Signaler    = (*Executor)(nil)
)

// New returns an executor. Its program must call Supervise before anything else.
func New(config Config) (*Executor, error) {
	if config.StateDir == "" {
		return nil, errors.New("a process executor needs a state directory")
	}
	if config.LogBytes == 0 {
		config.LogBytes = DefaultLogBytes
	}
	if config.LogBytes < 0 {
		return nil, errors.New("a log's size cannot be below zero")
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	return &Executor{config: config, root: taskdir.Root(config.StateDir), log: config.Logger, killTime: 45 * time.Second}, nil
}

// Supervise turns this process into a task's supervisor if its arguments say so, and does
// not return then. A program that holds an Executor calls it first in main, because the
// program is started again for each task.
func Supervise(args []string) {
	dir, ok := supervise.Requested(args)
	if !ok {
		return
	}
	if err := supervise.Run(dir); err != nil {
		fmt.Fprintf(os.Stderr, "%s supervise the task: %v\n", time.Now().Format(time.RFC3339), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Describe implements [sdk.Executor].
func (e *Executor) Describe(context.Context) (*sdk.Description, error) {
	description := &sdk.Description{
		Name:          "process",
		Version:       e.config.Version,
		Healthy:       true,
		Kinds:         []string{Kind},
		PayloadSchema: payloadSchema(),
		// Tasks that are not networked are all in the node's own network namespace.
		TaskGroups: true,
		TaskFiles:  true,
	}
	for _, controller := range e.cgroups().Controllers() {
		description.Capabilities = append(description.Capabilities, "limits."+controller)
	}
	var lacking []string
	if len(description.GetCapabilities()) == 0 {
		lacking = append(lacking, "limits of CPU, memory and processes cannot be kept here: "+noCgroups)
	}
	if err := e.canEnterNetwork(); err != nil {
		lacking = append(lacking, fmt.Sprintf("tasks cannot be attached to networks here: %s (%v)", noNetworks, err))
	} else {
		description.Capabilities = append(description.Capabilities, sdk.AcceptsNetwork)
	}
	description.Message = strings.Join(lacking, "; ")
	if err := e.open(); err != nil {
		description.Healthy, description.Message = false, err.Error()
	}
	return description, nil
}

// canEnterNetwork returns an error if tasks cannot be attached to networks here. It checks
// once.
func (e *Executor) canEnterNetwork() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.tried {
		e.tried, e.networkless = true, supervise.CanEnterNetwork()
	}
	return e.networkless
}

// open creates the state directory once.
func (e *Executor) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.opened {
		return nil
	}
	if err := e.root.Open(); err != nil {
		return sdk.Temporary(err, 0)
	}
	e.opened = true
	return nil
}

// cgroups returns the control groups of this machine. It checks once.
func (e *Executor) cgroups() *cgroup.System {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.groups == nil {
		e.groups = cgroup.Detect(cgroup.DefaultRoot)
	}
	return e.groups
}

// find returns a task's directory, or NotFound.
func (e *Executor) find(id string) (taskdir.Dir, error) {
	if err := e.open(); err != nil {
		return "", err
	}
	dir, err := e.root.Find(id)
	return dir, notFound(id, err)
}

// notFound turns the error of a missing directory into the SDK's NotFound.
func notFound(id string, err error) error {
	if errors.Is(err, taskdir.ErrNotFound) {
		return sdk.NotFound(id)
	}
	return err
}

// Prepare implements [sdk.Executor].
func (e *Executor) Prepare(_ context.Context, task *sdk.Task, _ sdk.Handle) (sdk.Handle, error) {
	if !taskdir.ValidID(task.GetId()) {
		return nil, sdk.SpecFault("", fmt.Errorf("a task's id cannot be %q", task.GetId()))
	}
	if err := e.open(); err != nil {
		return nil, err
	}
	if dir, err := e.root.Find(task.GetId()); err == nil {
		if sound, err := e.sound(dir); sound || err != nil {
			return nil, err
		}
	} else if !errors.Is(err, taskdir.ErrNotFound) {
		return nil, err
	}
	if err := e.canEnterNetwork(); err != nil && task.GetNetworked() {
		return nil, sdk.NodeFault(fmt.Errorf("networks: %s: %w", noNetworks, err))
	}
	if choosesPorts(task) {
		// Two tasks must not choose the same port.
		e.choosing.Lock()
		defer e.choosing.Unlock()
	}
	spec, err := e.plan(task)
	if err != nil {
		return nil, err
	}
	if err := e.root.Create(spec); err != nil {
		return nil, sdk.NodeFault(err)
	}
	return nil, nil
}

// sound reports whether a task is prepared correctly. It removes what a machine that was
// restarted left of a task that was not begun.
func (e *Executor) sound(dir taskdir.Dir) (bool, error) {
	if _, err := dir.Spec(); !errors.Is(err, taskdir.ErrDamaged) {
		return true, nil
	}
	lock, err := dir.Lock()
	if err != nil || lock == nil {
		return true, err
	}
	begun, err := dir.Begun()
	if err == nil && !begun {
		e.log.Warn("replacing damaged task directory", zap.String("task", dir.ID()))
		err = e.root.Remove(dir)
	}
	return begun, errors.Join(err, lock.Release())
}

// nodeHosts is the node's hosts file.
const nodeHosts = "/etc/hosts"

// SetNetwork implements [sdk.Networker]. It has no effect on a task that was started.
func (e *Executor) SetNetwork(_ context.Context, task *sdk.Task, _ sdk.Handle, network *sdk.Network) error {
	dir, err := e.find(task.GetId())
	if err != nil {
		return err
	}
	fresh, err := fresh(dir)
	if err != nil || !fresh {
		return err
	}
	hosts, err := os.ReadFile(nodeHosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sdk.NodeFault(fmt.Errorf("read the node's hosts file: %w", err))
	}
	lines := append([]string{strings.TrimRight(string(hosts), "\n")}, network.GetHosts()...)
	if err := dir.SetNetwork(network.GetNamespace(), sdk.ResolvConf(network), strings.Join(lines, "\n")+"\n"); err != nil {
		return sdk.NodeFault(err)
	}
	return nil
}

// startPoll is how often Start checks what the supervisor has written. A command takes
// about ten milliseconds to start.
const startPoll = 2 * time.Millisecond

// Start implements [sdk.Executor].
func (e *Executor) Start(ctx context.Context, task *sdk.Task, _ sdk.Handle) (*sdk.Started, error) {
	dir, err := e.find(task.GetId())
	if err != nil {
		return nil, err
	}
	fresh, err := fresh(dir)
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := e.spawn(dir); err != nil {
			return nil, notFound(task.GetId(), err)
		}
	}
	var started *sdk.Started
	look := func() (bool, error) {
		var err error
		started, err = poll(ctx, errNotYet, func() (*sdk.Started, error) { return e.started(dir, task) })
		if errors.Is(err, errUnchecked) {
			return false, nil
		}
		return true, err
	}
	if err := every(ctx, healthPoll, look); err != nil {
		return nil, notFound(task.GetId(), err)
	}
	return started, nil
}

// errNotYet says that a supervisor has not written yet how the start went.
var errNotYet = errors.New("the supervisor has not started the command yet")

// errUnchecked says that the health check of a task has not succeeded yet.
var errUnchecked = errors.New("the health check has not succeeded yet")

// fresh reports whether a task was neither begun nor lost.
func fresh(dir taskdir.Dir) (bool, error) {
	begun, err := dir.Begun()
	if err != nil || begun {
		return false, err
	}
	exit, err := exitOf(dir)
	return exit == nil, err
}

// spawn starts the supervisor of a task, unless another process of this executor has done
// so or is about to.
func (e *Executor) spawn(dir taskdir.Dir) error {
	lock, err := dir.Lock()
	if err != nil || lock == nil {
		return err
	}
	// A supervisor may have come and gone between the check above and the lock.
	fresh, err := fresh(dir)
	if err != nil || !fresh {
		return errors.Join(err, lock.Release())
	}
	supervisor, err := supervise.Spawn(dir, lock.File)
	if err != nil {
		return sdk.NodeFault(errors.Join(err, lock.Release()))
	}
	// A process must wait for its children. Nothing needs the result: a supervisor usually
	// outlives this process, and writes to the task's directory.
	go func() { _, _ = supervisor.Wait() }()
	if err := lock.HandedOn(); err != nil {
		e.log.Warn("failed to close task lock", zap.String("dir", string(dir)), zap.Error(err))
	}
	return nil
}

// started returns the status of a task that is being started, or errNotYet.
func (e *Executor) started(dir taskdir.Dir, task *sdk.Task) (*sdk.Started, error) {
	// Checked first: the result was written before the lock was released.
	alive, err := dir.Locked()
	if err != nil {
		return nil, err
	}
	exit, err := exitOf(dir)
	if err != nil {
		return nil, err
	}
	if exit != nil && exit.StartError != "" {
		return nil, sdk.Failed(errors.New(exit.StartError))
	}
	if exit != nil && exit.Unhealthy != nil && !exit.Unhealthy.Succeeded {
		return nil, sdk.Failed(fmt.Errorf("the process is %w", unhealthy(exit)))
	}
	run, err := runOf(dir)
	if err != nil {
		return nil, err
	}
	if run != nil {
		ports, err := heldPorts(dir, task)
		if err != nil {
			return nil, err
		}
		said, err := status(dir, run, exit)
		if err != nil {
			return nil, err
		}
		if state := said.GetHealth().GetState(); alive && exit == nil && (state == sdk.HealthStarting || state == sdk.HealthUnhealthy) {
			return nil, errUnchecked
		}
		return &sdk.Started{Status: said, Ports: ports}, nil
	}
	if alive {
		return nil, errNotYet
	}
	if exit, err = e.lost(dir); err != nil {
		return nil, err
	}
	if exit != nil {
		return nil, sdk.Failed(errors.New(exit.Lost))
	}
	return nil, sdk.NodeFault(fmt.Errorf("the task's supervisor ended at once: %s", tail(dir)))
}

// tail returns the end of a supervisor's own log.
func tail(dir taskdir.Dir) string {
	raw, err := os.ReadFile(string(dir) + "/" + taskdir.SupervisorLog)
	if err != nil || len(raw) == 0 {
		return "it said nothing"
	}
	return string(raw[max(0, len(raw)-1000):])
}

// status returns the status of a started task.
func status(dir taskdir.Dir, run *taskdir.Run, exit *taskdir.Exit) (*sdk.Status, error) {
	if run == nil {
		return nil, nil
	}
	said := &sdk.Status{Id: strconv.Itoa(run.Command.PID), Pid: int64(run.Command.PID)}
	if exit != nil {
		said.ExitCode, said.OomKilled = exit.Code, exit.OOMKilled
	}
	var err error
	said.Health, err = healthOf(dir, exit)
	return said, err
}
