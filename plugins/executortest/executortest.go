// Package executortest is the test suite that an executor has to pass to keep
// the contract. It starts the executor as a worker does, as a process of its
// own that is spoken to over gRPC with mutual TLS, and asks of it what the
// contract promises: that calls may be repeated, that the process may be killed
// at any moment with nothing doubled and nothing lost, that an end is known
// however late one asks, and that Remove leaves nothing.
//
// An author writes a TestMain that calls Main, and a test that calls Run with
// a function that makes a Harness.
package executortest

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// callTime bounds every call of the suite that is not meant to wait.
const callTime = 60 * time.Second

// Harness is one executor under test, and the means to look behind its back.
type Harness struct {
	// Plugin is the executor's process, holding no tasks yet.
	Plugin *Plugin
	// Spec makes the spec of a task that does the deed.
	Spec func(Deed) *musterv1.TaskSpec
	// Wrong are specs that Prepare must refuse for what the field says.
	Wrong map[string]*musterv1.TaskSpec
	// Running counts what really runs of a task, without asking the executor:
	// processes or containers. Nil if there is no other way to know.
	Running func(taskID string) int
	// Left names what is left of a task on the machine. Nil as above.
	Left func(taskID string) []string
	// Slow is true if a task takes more than some milliseconds to start. The
	// suite then kills the process at fewer moments.
	Slow bool
}

// Deed is what a task of the suite does.
type Deed struct {
	// Forever runs until it is told to stop; otherwise the task runs for RunFor.
	Forever  bool
	RunFor   time.Duration
	ExitCode int32
	// Stubborn ignores the polite request to stop. How a task takes the request
	// must be settled before it writes its first line.
	Stubborn bool
	// Grace is the spec's stop grace period; 0 leaves it out.
	Grace time.Duration
	// Says and Complains are written to standard output and standard error, one
	// line each, before anything else; Says first.
	Says      []string
	Complains []string
}

// Run runs the suite. It calls newHarness for each of its parts.
func Run(t *testing.T, newHarness func(t *testing.T) *Harness) {
	for _, part := range []struct {
		name string
		test func(*suite)
	}{
		{"Describe", (*suite).describe},
		{"Lifecycle", (*suite).lifecycle},
		{"Refusals", (*suite).refusals},
		{"UnknownTask", (*suite).unknownTask},
		{"NeverStarted", (*suite).neverStarted},
		{"RepeatedCalls", (*suite).repeatedCalls},
		{"Handles", (*suite).handles},
		{"Shutdown", (*suite).shutdown},
		{"Terminate", (*suite).terminate},
		{"RemoveWhileRunning", (*suite).removeWhileRunning},
		{"ListByNode", (*suite).listByNode},
		{"WaitIsCancelledFreely", (*suite).cancelledWait},
		{"RestartBetweenCalls", (*suite).restartBetweenCalls},
		{"EndWhileAway", (*suite).endWhileAway},
		{"KilledAtAnyMoment", (*suite).killedAtAnyMoment},
		{"ManyAtOnce", (*suite).manyAtOnce},
		{"Logs", (*suite).logs},
		{"Stats", (*suite).stats},
		{"Exec", (*suite).exec},
		{"DiesWithItsHost", (*suite).closes},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.test(&suite{T: t, Harness: newHarness(t), node: nextName("node")})
		})
	}
}

// suite is one part of the suite at work.
type suite struct {
	*testing.T
	*Harness
	node string
}

// names makes ids that no two tests of a process share.
var names atomic.Int64

func nextName(kind string) string {
	return fmt.Sprintf("%s%dx%d", kind, time.Now().UnixNano(), names.Add(1))
}

// task makes a task, and takes care that nothing of it is left after the test.
func (s *suite) task(deed Deed) *executorv1.Task {
	s.Helper()
	return s.taskOf(s.Spec(deed))
}

func (s *suite) taskOf(spec *musterv1.TaskSpec) *executorv1.Task {
	s.Helper()
	id := nextName("t")
	task := &executorv1.Task{
		Id: id, Name: "suite.1." + id, ServiceId: "suiteid", ServiceName: "suite", Slot: 1, NodeId: s.node, Spec: spec,
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		// A test that ended well has removed it; the plugin may be gone.
		_, _ = s.Plugin.Service().Remove(ctx, &executorv1.RemoveRequest{TaskId: id})
	})
	return task
}

// calls are the calls of one task that keep the handle as a worker does.
type calls struct {
	*suite
	task   *executorv1.Task
	handle []byte
}

func (s *suite) on(task *executorv1.Task) *calls { return &calls{suite: s, task: task} }

func (c *calls) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context(), callTime)
}

func (c *calls) tryPrepare() error {
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.Plugin.Service().Prepare(ctx, &executorv1.PrepareRequest{Task: c.task, Handle: c.handle})
	if err == nil {
		c.handle = response.GetHandle()
	}
	return wire.FromStatus(err)
}

func (c *calls) tryStart() (*executorv1.StartResponse, error) {
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.Plugin.Service().Start(ctx, &executorv1.StartRequest{Task: c.task, Handle: c.handle})
	if err == nil {
		c.handle = response.GetHandle()
	}
	return response, wire.FromStatus(err)
}

func (c *calls) tryWait() (*executorv1.WaitResponse, error) {
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.Plugin.Service().Wait(ctx, &executorv1.WaitRequest{TaskId: c.task.GetId(), Handle: c.handle})
	return response, wire.FromStatus(err)
}

func (c *calls) tryRemove() error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.Plugin.Service().Remove(ctx, &executorv1.RemoveRequest{TaskId: c.task.GetId(), Handle: c.handle})
	return wire.FromStatus(err)
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

// startReady starts a task that says "ready", and waits until it has, so that
// it is known how it will take what comes.
func (c *calls) startReady() *executorv1.StartResponse {
	c.Helper()
	started := c.start()
	if c.has("logs") {
		c.line(ready)
	}
	return started
}

// ready is what a task says that is waited for.
const ready = "ready"

func (c *calls) wait() *executorv1.WaitResponse {
	c.Helper()
	response, err := c.tryWait()
	if err != nil {
		c.Fatalf("Wait: %v", err)
	}
	return response
}

func (c *calls) remove() {
	c.Helper()
	if err := c.tryRemove(); err != nil {
		c.Fatalf("Remove: %v", err)
	}
}

// gone checks that nothing is left of the task.
func (c *calls) gone() {
	c.Helper()
	if listed := c.listed(); listed != nil {
		c.Errorf("after Remove the task is listed as %s", listed.GetState())
	}
	if c.Running != nil {
		if n := c.Running(c.task.GetId()); n != 0 {
			c.Errorf("after Remove %d of the task run", n)
		}
	}
	if c.Left != nil {
		if left := c.Left(c.task.GetId()); len(left) > 0 {
			c.Errorf("after Remove there is left: %s", strings.Join(left, ", "))
		}
	}
}

// running checks that the task runs, once.
func (c *calls) running() {
	c.Helper()
	if listed := c.listed(); listed.GetState() != executorv1.ListedTask_RUNNING {
		c.Errorf("the task is listed as %s, want RUNNING", listed.GetState())
	}
	if c.Running != nil {
		if n := c.Running(c.task.GetId()); n != 1 {
			c.Errorf("%d of the task run, want 1", n)
		}
	}
}

// listed returns what List says of the task, or nil.
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
	ctx, cancel := context.WithTimeout(s.Context(), callTime)
	defer cancel()
	response, err := s.Plugin.Service().List(ctx, &executorv1.ListRequest{NodeId: node})
	if err != nil {
		s.Fatalf("List: %v", err)
	}
	return response.GetTasks()
}

// has tells whether the executor has a capability.
func (s *suite) has(capability string) bool {
	s.Helper()
	for _, has := range s.description().GetCapabilities() {
		if has == capability {
			return true
		}
	}
	return false
}

func (s *suite) description() *executorv1.DescribeResponse {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
	defer cancel()
	description, err := s.Plugin.Service().Describe(ctx, &executorv1.DescribeRequest{})
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	return description
}
