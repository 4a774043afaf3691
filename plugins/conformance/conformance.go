// Package conformance tests whether an executor follows the contract, as a set of rules. It
// starts the executor as a worker does: as a process of its own, with gRPC over mutual TLS.
// The rules check what the contract promises: that calls may be repeated, that the process
// may be killed at any moment and nothing is doubled or lost, that an end is known however
// late it is asked for, and that Remove leaves nothing.
//
// `muster plugin test` tests a program with [Try]. Package executortest runs the rules as
// Go tests.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// defaultPatience bounds every call that is not meant to wait, unless a harness sets
// another bound.
const defaultPatience = 60 * time.Second

// Harness is a plugin under test, with ways to observe it from outside.
type Harness struct {
	// Plugin is the plugin's process, holding no tasks yet.
	Plugin *Plugin
	// Network says how networks are made for a network plugin. The fields that follow
	// are for executors, except Left, Settle and Patience.
	Network *NetworkOptions
	// Spec returns the spec of a task with a behavior.
	Spec func(Behavior) *musterv1.TaskSpec
	// Wrong are specs that Prepare must refuse, by the field that is wrong.
	Wrong map[string]*musterv1.TaskSpec
	// Running counts the processes or containers of a task without asking the executor. It
	// is nil if there is no way to do so.
	Running func(taskID string) int
	// Settle is how long that count may lag behind what the executor reports.
	Settle time.Duration
	// Watch is called with the task that a spec was made for. It may be nil.
	Watch func(taskID string, spec *musterv1.TaskSpec)
	// Left names what is left of a task on the machine. It is nil if there is no way to
	// know.
	Left func(taskID string) []string
	// Patience bounds calls that are not meant to wait; 0 is a minute.
	Patience time.Duration
	// Slow means that a task takes more than some milliseconds to start. Then the process
	// is killed at fewer moments.
	Slow bool
}

// Behavior is what a task of a rule does.
type Behavior struct {
	// Forever runs until it is stopped. Otherwise the task runs for RunFor.
	Forever  bool
	RunFor   time.Duration
	ExitCode int32
	// Stubborn ignores the request to stop. A task must have set its handling of that
	// request before it writes its first line.
	Stubborn bool
	// Sick has a health check that fails: it writes [SickOutput] and exits with
	// code [SickExitCode]. Specs of executors without health checks ignore it.
	Sick bool
	// Grace is the spec's stop grace period; 0 leaves it out.
	Grace time.Duration
	// Says and Complains are written to standard output and standard error, one
	// line each, before anything else; Says first.
	Says      []string
	Complains []string
	// Reads are files whose content is written to standard output after that, and again
	// after each SIGHUP, which does not end the task then.
	Reads []string
}

// What the health check of a sick task does.
const (
	SickOutput   = "no good"
	SickExitCode = 3
)

// T receives the findings of a rule: a [testing.T], or a [trial].
type T interface {
	Helper()
	Log(args ...any)
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	// Context ends when the rule has ended, before the functions given to Cleanup run.
	Context() context.Context
	Cleanup(f func())
}

// Rule is one requirement of the contract.
type Rule struct {
	Name string
	// Asks states the requirement in a sentence.
	Asks string
	// Needs is the capability without which the rule asks only that calls are
	// answered UNIMPLEMENTED, or nothing if there is no call of its own for it.
	Needs  string
	noCall bool
	// Ends means that the rule starts and ends tasks.
	Ends bool
	test func(*suite)
}

// Rules are all rules, in the order in which an author needs them.
func Rules() []Rule {
	return []Rule{
		{Name: "Describe", Asks: "Describe says name, version, kinds and health, and a schema that fits what runs", test: (*suite).describe},
		{Name: "Lifecycle", Asks: "a task is prepared, started, ends with its exit code, and is removed", Ends: true, test: (*suite).lifecycle},
		{Name: "Refusals", Asks: "Prepare refuses a wrong spec and names the field", test: (*suite).refusals},
		{Name: "UnknownTask", Asks: "calls for a task that is not known say so; those that end one succeed", test: (*suite).unknownTask},
		{Name: "NeverStarted", Asks: "a task that was never started has no end to wait for", Ends: true, test: (*suite).neverStarted},
		{Name: "RepeatedCalls", Asks: "a repeated call succeeds and changes nothing", Ends: true, test: (*suite).repeatedCalls},
		{Name: "Handles", Asks: "without the handle, or with an older or unknown one, the task's id does", Ends: true, test: (*suite).handles},
		{Name: "Shutdown", Asks: "Shutdown asks first, and kills when the grace period is over", Ends: true, test: (*suite).shutdown},
		{Name: "Terminate", Asks: "Terminate kills at once", Ends: true, test: (*suite).terminate},
		{Name: "RemoveWhileRunning", Asks: "Remove of a running task kills it and leaves nothing", Ends: true, test: (*suite).removeWhileRunning},
		{Name: "ListByNode", Asks: "List tells of the tasks of one node", test: (*suite).listByNode},
		{Name: "WaitIsCancelledFreely", Asks: "a Wait that is cancelled does nothing to the task", Ends: true, test: (*suite).cancelledWait},
		{Name: "RestartBetweenCalls", Asks: "a process killed between calls is followed by one that knows all", Ends: true, test: (*suite).restartBetweenCalls},
		{Name: "EndWhileAway", Asks: "an end that no process saw is known, with its exit code", Ends: true, test: (*suite).endWhileAway},
		{Name: "KilledAtAnyMoment", Asks: "a process killed within a call leaves nothing doubled, lost or orphaned", Ends: true, test: (*suite).killedAtAnyMoment},
		{Name: "ManyAtOnce", Asks: "calls for different tasks may come at once", Ends: true, test: (*suite).manyAtOnce},
		{Name: "Logs", Asks: "Logs has every line, followed or not, by stream, tail and time", Needs: "logs", Ends: true, test: (*suite).logs},
		{Name: "Stats", Asks: "Stats says what a task uses", Needs: "stats", Ends: true, test: (*suite).stats},
		{Name: "Exec", Asks: "Exec runs a command beside the task, with input, output and exit code", Needs: "exec", Ends: true, test: (*suite).exec},
		{Name: "Update", Asks: "Update of a running task succeeds, and it is the same task afterwards", Needs: "update", Ends: true, test: (*suite).update},
		{Name: "Observe", Asks: "Observe reports what Start waits for, and ends with the task", Needs: "observe", Ends: true, test: (*suite).observe},
		{Name: "NetworkProvided", Asks: "the namespace that Prepare makes for a networked task is the task's until Remove", Needs: sdk.ProvidesNetwork, noCall: true, Ends: true, test: (*suite).networkProvided},
		{Name: "NetworkAccepted", Asks: "a networked task runs in the namespace that Start names", Needs: sdk.AcceptsNetwork, noCall: true, Ends: true, test: (*suite).networkAccepted},
		{Name: "Groups", Asks: "containers of a group share a network namespace, and start before and after the main one", Needs: groups, noCall: true, Ends: true, test: (*suite).groups},
		{Name: "Files", Asks: "a task sees its files, and other content after Update", Needs: files, noCall: true, Ends: true, test: (*suite).files},
		{Name: "Signal", Asks: "Signal reaches the main process of a running task", Needs: signals, Ends: true, test: (*suite).signals},
		{Name: "Volumes", Asks: "a volume with a name outlives its task, and is removed only when no task uses it", Needs: volumes, Ends: true, test: (*suite).volumes},
		{Name: "DiesWithItsHost", Asks: "the process ends when its worker dies", test: (*suite).closes},
	}
}

// Check tests the rule on an executor that holds no tasks yet.
func (r Rule) Check(t T, h *Harness) {
	t.Helper()
	r.test(&suite{T: t, Harness: h, node: nextName("node")})
}

// suite is one run of a rule.
type suite struct {
	T
	*Harness
	node string
	// cleans means that networks are removed after the rule.
	cleans bool
}

// names makes ids that are unique within a process.
var names atomic.Int64

func nextName(kind string) string {
	return fmt.Sprintf("%s%dx%d", kind, time.Now().UnixNano(), names.Add(1))
}

// task makes a task that is removed after the test.
func (s *suite) task(behavior Behavior) *executorv1.Task {
	s.Helper()
	return s.taskOf(s.Spec(behavior))
}

func (s *suite) taskOf(spec *musterv1.TaskSpec) *executorv1.Task {
	s.Helper()
	id := nextName("t")
	task := &executorv1.Task{
		Id: id, Name: "suite.1." + id, ServiceId: "suiteid", ServiceName: "suite", Slot: 1, NodeId: s.node, Spec: spec,
	}
	if s.Watch != nil {
		s.Watch(id, spec)
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.patience())
		defer cancel()
		// A test that succeeded has removed it, and the plugin may have ended.
		_, _ = s.Plugin.Service().Remove(ctx, &executorv1.RemoveRequest{TaskId: id})
	})
	return task
}

// calls makes the calls of one task, and keeps the handle as a worker does.
type calls struct {
	*suite
	task   *executorv1.Task
	handle []byte
	// network is passed to Start for a networked task.
	network *executorv1.TaskNetwork
}

func (s *suite) on(task *executorv1.Task) *calls { return &calls{suite: s, task: task} }

// patience returns how long a call may take that is not meant to wait.
func (s *suite) patience() time.Duration {
	if s.Patience > 0 {
		return s.Patience
	}
	return defaultPatience
}

func (c *calls) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context(), c.patience())
}

// call makes one call that is not meant to wait for long.
func call[Q, R any](s *suite, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	ctx, cancel := context.WithTimeout(s.Context(), s.patience())
	defer cancel()
	response, err := rpc(ctx, request)
	return response, wire.FromStatus(err)
}

// collect returns what a stream brings until it ends.
func collect[R any](stream grpc.ServerStreamingClient[R], err error) ([]*R, error) {
	var all []*R
	for err == nil {
		var next *R
		if next, err = stream.Recv(); err == nil {
			all = append(all, next)
		}
	}
	if errors.Is(err, io.EOF) {
		return all, nil
	}
	return all, wire.FromStatus(err)
}

func (c *calls) tryPrepare() error {
	response, err := call(c.suite, c.Plugin.Service().Prepare, &executorv1.PrepareRequest{Task: c.task, Handle: c.handle})
	if err == nil {
		c.handle = response.GetHandle()
		if path := response.GetNetworkNamespace(); path != "" {
			c.network = &executorv1.TaskNetwork{Namespace: path}
		}
	}
	return err
}

func (c *calls) tryStart() (*executorv1.StartResponse, error) {
	response, err := call(c.suite, c.Plugin.Service().Start, &executorv1.StartRequest{Task: c.task, Handle: c.handle, Network: c.network})
	if err == nil {
		c.handle = response.GetHandle()
	}
	return response, err
}

func (c *calls) tryWait() (*executorv1.WaitResponse, error) {
	return call(c.suite, c.Plugin.Service().Wait, &executorv1.WaitRequest{TaskId: c.task.GetId(), Handle: c.handle})
}

// tryShutdown calls Shutdown. Without a grace period, the spec's applies.
func (c *calls) tryShutdown(grace *durationpb.Duration) (*executorv1.ShutdownResponse, error) {
	return call(c.suite, c.Plugin.Service().Shutdown, &executorv1.ShutdownRequest{TaskId: c.task.GetId(), Handle: c.handle, GracePeriod: grace})
}

func (c *calls) tryTerminate() (*executorv1.TerminateResponse, error) {
	return call(c.suite, c.Plugin.Service().Terminate, &executorv1.TerminateRequest{TaskId: c.task.GetId(), Handle: c.handle})
}

func (c *calls) tryRemove() error {
	_, err := call(c.suite, c.Plugin.Service().Remove, &executorv1.RemoveRequest{TaskId: c.task.GetId(), Handle: c.handle})
	return err
}

func (c *calls) prepare() {
	c.Helper()
	if err := c.tryPrepare(); err != nil {
		c.Fatalf("Prepare: %v", err)
	}
}

func (c *calls) start() *executorv1.StartResponse {
	c.Helper()
	response, err := c.tryStart()
	if err != nil {
		c.Fatalf("Start: %v", err)
	}
	return response
}

// startReady starts a task that writes "ready", and waits for that line. Then it is known
// how the task handles signals.
func (c *calls) startReady() *executorv1.StartResponse {
	c.Helper()
	started := c.start()
	if c.has("logs") {
		c.line(ready)
	} else if c.Running != nil {
		// The task's process has done that before it is counted.
		c.counted(1)
	}
	return started
}

// counted counts the processes of the task until there are as many as wanted, or the time
// is over.
func (c *calls) counted(want int) int {
	var n int
	eventually(c.Context(), c.Settle, func() bool {
		n = c.Running(c.task.GetId())
		return n == want
	})
	return n
}

// ready is the line that a task writes when it is ready.
const ready = "ready"

func (c *calls) wait() *executorv1.WaitResponse {
	c.Helper()
	response, err := c.tryWait()
	if err != nil {
		c.Fatalf("Wait: %v", err)
	}
	return response
}

func (c *calls) shutdown() *executorv1.ShutdownResponse {
	c.Helper()
	response, err := c.tryShutdown(nil)
	if err != nil {
		c.Fatalf("Shutdown: %v", err)
	}
	return response
}

func (c *calls) terminate() *executorv1.TerminateResponse {
	c.Helper()
	response, err := c.tryTerminate()
	if err != nil {
		c.Fatalf("Terminate: %v", err)
	}
	return response
}

func (c *calls) remove() {
	c.Helper()
	if err := c.tryRemove(); err != nil {
		c.Fatalf("Remove: %v", err)
	}
}

// removed removes the task, and checks that nothing is left of it.
func (c *calls) removed() {
	c.Helper()
	c.remove()
	c.gone()
}

// stopped checks that no process of the task runs.
func (c *calls) stopped(when string) {
	c.Helper()
	if c.Running != nil {
		if n := c.counted(0); n != 0 {
			c.Errorf("%s %d of the task run", when, n)
		}
	}
}

// gone checks that nothing is left of the task.
func (c *calls) gone() {
	c.Helper()
	if listed := c.listed(); listed != nil {
		c.Errorf("after Remove the task is listed as %s", listed.GetState())
	}
	c.stopped("after Remove")
	if c.Left != nil {
		if left := c.Left(c.task.GetId()); len(left) > 0 {
			c.Errorf("after Remove there is left: %s", strings.Join(left, ", "))
		}
	}
}

// running checks that the task runs exactly once.
func (c *calls) running() {
	c.Helper()
	if listed := c.listed(); listed.GetState() != executorv1.ListedTask_RUNNING {
		c.Errorf("the task is listed as %s, want RUNNING", listed.GetState())
	}
	if c.Running != nil {
		if n := c.counted(1); n != 1 {
			c.Errorf("%d of the task run, want 1", n)
		}
	}
}

// listed returns the task's entry in List, or nil.
func (c *calls) listed() *executorv1.ListedTask {
	c.Helper()
	var found *executorv1.ListedTask
	for _, listed := range c.list(c.task.GetNodeId()) {
		if listed.GetTaskId() != c.task.GetId() {
			continue
		}
		if found != nil {
			c.Errorf("the task is listed twice")
		}
		found = listed
	}
	return found
}

func (s *suite) list(node string) []*executorv1.ListedTask {
	s.Helper()
	response, err := call(s, s.Plugin.Service().List, &executorv1.ListRequest{NodeId: node})
	if err != nil {
		s.Fatalf("List: %v", err)
	}
	return response.GetTasks()
}

// said returns the executor's description, or nil if Describe fails.
func (h *Harness) said(ctx context.Context) *executorv1.DescribeResponse {
	description, err := h.Plugin.Service().Describe(ctx, &executorv1.DescribeRequest{})
	if err != nil {
		return nil
	}
	return description
}

// has reports whether the executor has a capability.
func (s *suite) has(capability string) bool {
	s.Helper()
	return slices.Contains(capabilities(s.description()), capability)
}

// Capabilities as workers report them, of executors that run task groups, give tasks their
// files, and deliver signals.
const (
	groups  = "groups"
	files   = "files"
	signals = "signals"
	volumes = "volumes"
)

// capabilities returns those of an executor as a worker reports them.
func capabilities(said *executorv1.DescribeResponse) []string {
	all := slices.Clone(said.GetCapabilities())
	for capability, has := range map[string]bool{groups: said.GetTaskGroups(), files: said.GetTaskFiles(), signals: said.GetSignals()} {
		if has {
			all = append(all, capability)
		}
	}
	return all
}

func (s *suite) description() *executorv1.DescribeResponse {
	s.Helper()
	description, err := call(s, s.Plugin.Service().Describe, &executorv1.DescribeRequest{})
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	return description
}
