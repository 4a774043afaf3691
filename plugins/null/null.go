// Package null is an executor whose tasks do nothing. It is for measurements and
// simulations: a task costs a few hundred bytes and no process. The script in a task's
// payload can make it fail in Prepare, hang in Start, or end its executor.
//
// A task is a record. With a state directory the records outlive the process, and tasks
// continue to "run". Without one they are in memory.
package null

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/plugins/internal/signals"
	"github.com/musterhq/muster/plugins/sdk"
)

// Kind is the runtime kind of null tasks.
const Kind = "null"

// Exit codes of tasks that were stopped: 128 plus the signal that would have ended a
// process.
const (
	exitShutdown = 128 + 15
	exitKilled   = 128 + 9
)

// Config configures a null executor.
type Config struct {
	// Version is the version that the executor reports.
	Version string
	// StateDir stores the tasks. If it is empty, tasks are kept in memory. It is created
	// when it is first needed.
	StateDir string
	// Kinds are the runtime kinds that the executor runs. The default is Kind. A simulation
	// may use it for "container".
	Kinds []string
	// Exit ends the process when a script asks for it. The default is os.Exit(3).
	Exit func()
}

// Executor runs null tasks.
type Executor struct {
	config Config
	files  files

	mu    sync.Mutex
	tasks map[string]*task
}

var (
	_ sdk.Executor        = (*Executor)(nil)
	_ sdk.NetworkProvider = (*Executor)(nil)
	_ sdk.Signaler        = (*Executor)(nil)
)

// task is a record and the calls that wait for it.
type task struct {
	record
	// network is the last argument of SetNetwork.
	network *sdk.Network
	// signals are the signals that Signal has sent.
	signals []string
	// changed is closed when the task is stopped or removed. It is nil unless a call waits.
	changed chan struct{}
}

// New returns an executor with the tasks that an earlier process stored in the same state
// directory.
func New(config Config) (*Executor, error) {
	if len(config.Kinds) == 0 {
		config.Kinds = []string{Kind}
	}
	if config.Exit == nil {
		config.Exit = func() { os.Exit(3) }
	}
	e := &Executor{config: config, files: files{dir: config.StateDir}, tasks: map[string]*task{}}
	records, err := e.files.load()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		e.tasks[r.ID] = &task{record: r}
	}
	return e, nil
}

// Describe implements [sdk.Executor].
func (e *Executor) Describe(context.Context) (*sdk.Description, error) {
	return &sdk.Description{
		Name:          "null",
		Version:       e.config.Version,
		Healthy:       true,
		Kinds:         slices.Clone(e.config.Kinds),
		Capabilities:  []string{sdk.AcceptsNetwork, sdk.ProvidesNetwork},
		PayloadSchema: payloadSchema(),
		TaskGroups:    true,
		TaskFiles:     true,
	}, nil
}

// Prepare implements [sdk.Executor].
func (e *Executor) Prepare(ctx context.Context, in *sdk.Task, _ sdk.Handle) (sdk.Handle, error) {
	if !filepath.IsLocal(in.GetId()) || filepath.Base(in.GetId()) != in.GetId() {
		return nil, sdk.SpecFault("", fmt.Errorf("a task's id cannot be %q", in.GetId()))
	}
	script, err := decode(in)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(in); err != nil {
		return nil, err
	}
	// The record is saved first, because the next process must know what the script has
	// done by then.
	e.mu.Lock()
	t, ok := e.tasks[in.GetId()]
	if !ok {
		t = &task{record: record{Version: recordVersion, ID: in.GetId(), NodeID: in.GetNodeId(), Script: script}}
		if in.GetNetworked() && !script.AcceptNetwork && in.GetSharesNetworkOf() == "" {
			t.Namespace = e.files.namespace(t.ID)
		}
		e.tasks[t.ID] = t
		err = e.files.save(&t.record)
	}
	prepared := t.State != 0
	e.mu.Unlock()
	if err != nil {
		return nil, sdk.NodeFault(err)
	}
	if prepared {
		return nil, nil
	}
	if err := e.files.makeNamespace(t.Namespace); err != nil {
		return nil, sdk.NodeFault(err)
	}
	if err := e.act(ctx, t, callPrepare, script.PrepareDelay, script.FailPrepare); err != nil {
		return nil, err
	}
	return nil, e.change(t, func() {
		// It may have been ended meanwhile.
		t.State = max(t.State, sdk.Prepared)
	})
}

// Namespace implements [sdk.NetworkProvider]. It returns nothing for a task whose script
// accepts a namespace.
func (e *Executor) Namespace(_ context.Context, ref sdk.Ref) (string, error) {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return "", err
	}
	return t.Namespace, nil
}

// SetNetwork implements [sdk.Networker].
func (e *Executor) SetNetwork(_ context.Context, in *sdk.Task, _ sdk.Handle, network *sdk.Network) error {
	t, err := e.find(in.GetId())
	if err != nil {
		return err
	}
	if t.Namespace != "" && network.GetNamespace() != t.Namespace {
		return sdk.NodeFault(fmt.Errorf("the network namespace of the task is %q, and the call names %q", t.Namespace, network.GetNamespace()))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.network = network
	return nil
}

// Network returns the last network that SetNetwork set for a task in this process, or nil.
func (e *Executor) Network(taskID string) *sdk.Network {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[taskID]; t != nil {
		return t.network
	}
	return nil
}

// Start implements [sdk.Executor].
func (e *Executor) Start(ctx context.Context, in *sdk.Task, _ sdk.Handle) (*sdk.Started, error) {
	t, err := e.find(in.GetId())
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	state := t.State
	e.mu.Unlock()
	if state == 0 {
		return nil, sdk.NotFound(in.GetId())
	}
	if state == sdk.Prepared {
		if err := checkFiles(in); err != nil {
			return nil, err
		}
		if err := e.act(ctx, t, callStart, t.Script.StartDelay, t.Script.FailStart); err != nil {
			return nil, err
		}
		if err := e.change(t, func() {
			if t.State != sdk.Prepared {
				return
			}
			t.State, t.Started = sdk.Running, time.Now()
			if t.Script.RunFor != nil {
				t.Ends = t.Started.Add(time.Duration(*t.Script.RunFor))
			}
		}); err != nil {
			return nil, err
		}
	}
	return &sdk.Started{Status: e.status(t), Ports: in.GetPorts()}, nil
}

// checkFiles returns an error if a file of a task is not there.
func checkFiles(in *sdk.Task) error {
	for _, file := range in.GetFiles() {
		if _, err := os.Stat(file.GetSource()); err != nil {
			return sdk.NodeFault(fmt.Errorf("file for %s: %w", file.GetTarget(), err))
		}
	}
	return nil
}

// Signal implements [sdk.Signaler]. It notes the signal, and ends the task with SIGTERM
// and SIGKILL.
func (e *Executor) Signal(_ context.Context, ref sdk.Ref, signal string) error {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	number := signals.Number(signal)
	if number == 0 {
		return sdk.SpecFault("signal", fmt.Errorf("there is no signal %q", signal))
	}
	e.mu.Lock()
	t.settle(time.Now())
	running := t.State == sdk.Running
	if running {
		t.signals = append(t.signals, signal)
	}
	e.mu.Unlock()
	switch {
	case !running:
		return sdk.NotStarted(ref.TaskID)
	case number == exitShutdown-128, number == exitKilled-128:
		_, err = e.kill(t, 128+int32(number))
	}
	return err
}

// Signals returns the signals that Signal has sent to a task.
func (e *Executor) Signals(taskID string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[taskID]; t != nil {
		return slices.Clone(t.signals)
	}
	return nil
}

// Wait implements [sdk.Executor].
func (e *Executor) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	if e.status(t) == nil {
		return nil, sdk.NotStarted(ref.TaskID)
	}
	if err := e.act(ctx, t, callWait, 0, ""); err != nil {
		return nil, err
	}
	if err := e.ended(ctx, t); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ended := &sdk.Ended{Status: t.status(), At: t.Ended}
	if t.Script.Unhealthy && t.Ended.Equal(t.Ends) {
		ended.Error = "unhealthy"
	}
	return ended, nil
}

// Shutdown implements [sdk.Executor].
func (e *Executor) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	if err := e.act(ctx, t, callShutdown, 0, ""); err != nil {
		return nil, err
	}
	code := int32(exitShutdown)
	if t.Script.IgnoreShutdown {
		code = exitKilled
		within, cancel := context.WithTimeout(ctx, t.Script.grace(grace))
		defer cancel()
		if err := e.ended(within, t); err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return e.kill(t, code)
}

// Terminate implements [sdk.Executor].
func (e *Executor) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	if err := e.act(ctx, t, callTerminate, 0, ""); err != nil {
		return nil, err
	}
	return e.kill(t, exitKilled)
}

// Remove implements [sdk.Executor].
func (e *Executor) Remove(ctx context.Context, ref sdk.Ref) error {
	t, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	if err := e.act(ctx, t, callRemove, 0, ""); err != nil {
		return err
	}
	if _, err := e.kill(t, exitKilled); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.files.remove(t.ID); err != nil {
		return sdk.Temporary(err, 0)
	}
	delete(e.tasks, t.ID)
	return nil
}

// List implements [sdk.Executor].
func (e *Executor) List(_ context.Context, nodeID string) ([]sdk.Listed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var listed []sdk.Listed
	for _, t := range e.tasks {
		if nodeID != "" && t.NodeID != nodeID {
			continue
		}
		t.settle(time.Now())
		// A task that is not prepared yet exists, too, and must be removed.
		listed = append(listed, sdk.Listed{TaskID: t.ID, State: max(t.State, sdk.Prepared), Status: t.status(), Namespace: t.Namespace})
	}
	return listed, nil
}

func (e *Executor) find(id string) (*task, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.tasks[id]
	if !ok {
		return nil, sdk.NotFound(id)
	}
	return t, nil
}

// change changes a task and saves it.
func (e *Executor) change(t *task, apply func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	apply()
	if err := e.files.save(&t.record); err != nil {
		return sdk.Temporary(err, 0)
	}
	return nil
}

func (e *Executor) status(t *task) *sdk.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return t.status()
}

// act does what the script asks for a call: end the process, hang, delay, or fail.
func (e *Executor) act(ctx context.Context, t *task, call string, delay sdk.Duration, failure string) error {
	if t.Script.ExitPluginAt == call {
		var first bool
		if err := e.change(t, func() { first, t.Crashed = !t.Crashed, true }); err != nil {
			return err
		}
		if first {
			e.config.Exit()
			return sdk.Temporary(errors.New("the executor's process is to end here"), 0)
		}
	}
	if t.Script.HangAt == call {
		<-ctx.Done()
		return ctx.Err()
	}
	if delay > 0 {
		timer := time.NewTimer(time.Duration(delay))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if failure == "" {
		return nil
	}
	var fail bool
	if err := e.change(t, func() {
		fail = t.Script.FailTimes == 0 || t.Failures < t.Script.FailTimes
		t.Failures++
	}); err != nil || !fail {
		return err
	}
	return t.Script.failure(failure)
}

// ended returns when the task has ended.
func (e *Executor) ended(ctx context.Context, t *task) error {
	for {
		e.mu.Lock()
		t.settle(time.Now())
		if t.State == sdk.Exited {
			e.mu.Unlock()
			return nil
		}
		if t.changed == nil {
			t.changed = make(chan struct{})
		}
		changed, ends := t.changed, t.Ends
		e.mu.Unlock()
		if err := sleep(ctx, changed, ends); err != nil {
			return err
		}
	}
}

// sleep returns when a task has to be checked again.
func sleep(ctx context.Context, changed <-chan struct{}, ends time.Time) error {
	var end <-chan time.Time
	if !ends.IsZero() {
		timer := time.NewTimer(time.Until(ends))
		defer timer.Stop()
		end = timer.C
	}
	select {
	case <-changed:
		return nil
	case <-end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill ends a running task. A task that never ran has no status.
func (e *Executor) kill(t *task, code int32) (*sdk.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.settle(time.Now())
	if t.State == sdk.Running {
		t.State, t.Ended, t.ExitCode = sdk.Exited, time.Now(), code
		if t.changed != nil {
			close(t.changed)
			t.changed = nil
		}
		if err := e.files.save(&t.record); err != nil {
			return nil, sdk.Temporary(err, 0)
		}
	}
	return t.status(), nil
}

// settle records that a task has ended by itself, if it has. Nothing is saved, because it
// follows from the record.
func (t *task) settle(now time.Time) {
	if t.State == sdk.Running && !t.Ends.IsZero() && !now.Before(t.Ends) {
		t.State, t.Ended, t.ExitCode = sdk.Exited, t.Ends, t.Script.ExitCode
	}
}

// status is nil for a task that was never started.
func (t *task) status() *sdk.Status {
	if t.State != sdk.Running && t.State != sdk.Exited {
		return nil
	}
	return &sdk.Status{Id: "null-" + t.ID, ExitCode: t.ExitCode}
}
