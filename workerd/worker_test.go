package workerd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// Shorter names for the states in this package's tests.
const (
	ready    = TaskState_READY
	running  = TaskState_RUNNING
	complete = TaskState_COMPLETE
	shutdown = TaskState_SHUTDOWN
	failed   = TaskState_FAILED
	rejected = TaskState_REJECTED
)

// node is a worker in a test.
type node struct {
	t      testing.TB
	worker *workerd.Worker
	cancel context.CancelFunc
	done   chan error
}

// nullSet returns a set with one null executor, which forgets all with the
// process.
func nullSet(t testing.TB) (executor.Set, *null.Executor) {
	t.Helper()
	e, err := null.New(null.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(e)))
	if err != nil {
		t.Fatal(err)
	}
	return set, e
}

// start runs a worker with a set of executors until stop is called, or the test
// ends.
func start(t testing.TB, n *network, set executor.Set, change func(*workerd.Config)) *node {
	t.Helper()
	return startLogging(t, n, set, logger(t), change)
}

func startLogging(t testing.TB, n *network, set executor.Set, log *zap.Logger, change func(*workerd.Config)) *node {
	t.Helper()
	cfg := workerd.DefaultConfig()
	cfg.NodeID = "node1"
	cfg.Hostname = "host1"
	cfg.Dispatchers = []string{"d1:1"}
	cfg.Resources = &Resources{NanoCpus: 4e9, MemoryBytes: 8 << 30}
	if change != nil {
		change(&cfg)
	}
	w, err := workerd.New(workerd.Env{Logger: log, Dial: n.dial, Executors: set, Version: "test"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	node := &node{t: t, worker: w, cancel: cancel, done: make(chan error, 1)}
	go func() { node.done <- w.Run(ctx) }()
	t.Cleanup(node.stop)
	return node
}

// alone starts a dispatcher, and one worker with a null executor.
func alone(t testing.TB, change func(*workerd.Config)) (*dispatcher, *null.Executor, *node) {
	t.Helper()
	n := newNetwork()
	d, _ := n.serve(t, "d1:1")
	set, e := nullSet(t)
	return d, e, start(t, n, set, change)
}

// stop ends the worker in order.
func (n *node) stop() {
	n.cancel()
	if n.done == nil {
		return
	}
	if err := <-n.done; err != nil {
		n.t.Errorf("worker: %v", err)
	}
	n.done = nil
}

func logger(t testing.TB) *zap.Logger {
	if _, ok := t.(*testing.B); ok {
		return zap.NewNop()
	}
	return zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
}

func TestTasksRunAndAreReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		if s.hello.GetNodeId() != "node1" || s.hello.GetInstanceId() == "" {
			t.Errorf("hello = %v", s.hello)
		}
		node := s.hello.GetDescription()
		if node.GetHostname() != "host1" || node.GetResources().GetNanoCpus() != 4e9 || node.GetPlatform().GetOs() != "linux" ||
			len(node.GetExecutors()) != 1 || node.GetExecutors()[0].GetHealth() != ExecutorDescription_HEALTHY {
			t.Errorf("description = %v", node)
		}
		s.welcome()
		began := time.Now()
		s.assign(true, []assignment{
			nullTask("a", running, nil),
			nullTask("b", running, nil),
			nullTask("parked", ready, nil),
			nullTask("done", running, map[string]any{"runFor": "1s"}),
			nullTask("broken", running, map[string]any{"runFor": "1s", "exitCode": 3}),
			nullTask("sick", running, map[string]any{"runFor": "1s", "unhealthy": true}),
			nullTask("badspec", running, map[string]any{"failPrepare": "no such image", "blame": "spec"}),
			nullTask("badnode", running, map[string]any{"failStart": "no space left", "blame": "node"}),
			nullTask("unwanted", shutdown, nil),
		})
		settle(100 * time.Millisecond)
		s.wantStates(map[string]TaskState{
			"a": running, "b": running, "parked": ready, "done": running, "broken": running, "sick": running,
			"badspec": rejected, "badnode": failed, "unwanted": shutdown,
		})
		if got := s.all("a"); len(got) != 1 {
			t.Errorf("a was reported %d times, want once: what passes at once is not worth a report", len(got))
		} else {
			var states []TaskState
			for i, at := range got[0].GetTimes() {
				states = append(states, at.GetState())
				if i > 0 && at.GetAt().AsTime().Before(got[0].GetTimes()[i-1].GetAt().AsTime()) || at.GetAt().AsTime().Sub(began) > time.Second {
					t.Errorf("times are out of order: %v", got[0].GetTimes())
				}
			}
			want := []TaskState{TaskState_ACCEPTED, TaskState_PREPARING, ready, TaskState_STARTING, running}
			if !slices.Equal(states, want) {
				t.Errorf("times hold %v, want %v", states, want)
			}
		}
		if got := s.state("badspec"); got.GetError() != "no such image" {
			t.Errorf("badspec: %v", got)
		}
		if !s.all("badnode")[0].GetNodeToBlame() || s.all("badspec")[0].GetNodeToBlame() {
			t.Error("the wrong one is to blame")
		}
		settle(time.Second)
		s.wantStates(map[string]TaskState{
			"a": running, "b": running, "parked": ready, "done": complete, "broken": failed, "sick": failed,
			"badspec": rejected, "badnode": failed, "unwanted": shutdown,
		})
		if got := s.state("broken"); got.GetError() != "task: non-zero exit (3)" || got.GetRuntime().GetExitCode() != 3 {
			t.Errorf("broken: %v", got)
		}
		if got := s.state("sick"); got.GetError() != "task: unhealthy" {
			t.Errorf("sick: %v", got)
		}
	})
}

func TestChangesOfDesiredState(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, e := nullSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		parked, stopped, removed := nullTask("parked", ready, nil), nullTask("stopped", running, nil), nullTask("removed", running, nil)
		hanging := nullTask("hanging", running, map[string]any{"hangAt": "prepare"})
		s.assign(true, []assignment{parked, stopped, removed, hanging})
		settle(time.Second)
		s.wantStates(map[string]TaskState{
			"parked": ready, "stopped": running, "removed": running, "hanging": TaskState_PREPARING,
		})
		before := time.Now()
		s.assign(false, []assignment{parked.desire(running), stopped.desire(shutdown), hanging.desire(shutdown)}, "removed")
		// No pause of any kind is in the way of a stop.
		settle(10 * time.Millisecond)
		s.wantStates(map[string]TaskState{
			"parked": running, "stopped": shutdown, "removed": running, "hanging": shutdown,
		})
		if got := s.state("stopped"); got.GetRuntime().GetExitCode() != 143 || got.GetTimestamp().AsTime().Sub(before) > 10*time.Millisecond {
			t.Errorf("stopped: %v", got)
		}
		wantHeld(t, e, "hanging", "parked", "stopped")
		// A desired state that falls is a mistake or late, and changes nothing.
		s.assign(false, []assignment{stopped.desire(running), parked.desire(ready)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"parked": running, "stopped": shutdown, "removed": running, "hanging": shutdown})
		// A complete set withdraws what is not in it.
		s.assign(true, []assignment{parked.desire(running)})
		settle(time.Second)
		wantHeld(t, e, "parked")
	})
}

// wantHeld fails the test unless an executor holds exactly these tasks.
func wantHeld(t testing.TB, e *null.Executor, want ...string) {
	t.Helper()
	listed, err := e.List(context.Background(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, task := range listed {
		got = append(got, task.TaskID)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("executor holds %v, want %v", got, want)
	}
}

func TestTemporaryErrorsAreReportedAndTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{
			nullTask("slow", running, map[string]any{"failPrepare": "registry is away", "failTimes": 2, "temporary": true, "retryAfter": "5s"}),
			nullTask("plain", running, map[string]any{"failStart": "busy", "failTimes": 1, "temporary": true}),
		})
		settle(100 * time.Millisecond)
		s.wantStates(map[string]TaskState{"slow": TaskState_PREPARING, "plain": TaskState_STARTING})
		if got := s.state("slow").GetError(); got != "registry is away" {
			t.Errorf("error = %q", got)
		}
		settle(time.Second)
		s.wantStates(map[string]TaskState{"slow": TaskState_PREPARING, "plain": running})
		settle(8 * time.Second)
		s.wantStates(map[string]TaskState{"slow": TaskState_PREPARING, "plain": running})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"slow": running, "plain": running})
		if got := s.state("slow").GetError(); got != "" {
			t.Errorf("error = %q after it has passed", got)
		}
	})
}

func TestAnExecutorThatHangsIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		tasks := []assignment{
			nullTask("large", running, map[string]any{"prepareDelay": "15s"}),
			nullTask("hung", running, map[string]any{"hangAt": "prepare"}),
			nullTask("stuck", running, map[string]any{"hangAt": "start"}),
		}
		s.assign(true, tasks)
		wantErrors := func(want map[string]string) {
			t.Helper()
			for id, text := range want {
				if got := s.state(id).GetError(); got != text {
					t.Errorf("error of %s = %q, want %q", id, got, text)
				}
			}
		}
		settle(9 * time.Second)
		s.wantStates(map[string]TaskState{"large": TaskState_PREPARING, "hung": TaskState_PREPARING, "stuck": TaskState_STARTING})
		wantErrors(map[string]string{"large": "", "hung": "", "stuck": ""})
		settle(3 * time.Second)
		const slow = "executor null has not answered to %s within 10s; it is given more time"
		wantErrors(map[string]string{
			"large": fmt.Sprintf(slow, "prepare"), "hung": fmt.Sprintf(slow, "prepare"), "stuck": fmt.Sprintf(slow, "start"),
		})
		settle(5 * time.Second)
		s.wantStates(map[string]TaskState{"large": running, "hung": TaskState_PREPARING, "stuck": TaskState_STARTING})
		wantErrors(map[string]string{"large": ""})
		// Who waits no longer is not kept waiting.
		s.assign(false, []assignment{tasks[1].desire(shutdown), tasks[2].desire(shutdown)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"large": running, "hung": shutdown, "stuck": shutdown})
	})
}

func TestAnUnknownKindIsRejectedAndTheNodeBlamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		task := nullTask("a", running, nil)
		task.spec = &TaskSpec{Runtime: &TaskSpec_Container{Container: &ContainerSpec{Image: "nginx"}}}
		s.assign(true, []assignment{task})
		settle(time.Second)
		got := s.all("a")
		if len(got) != 1 || got[0].GetStatus().GetState() != rejected || !got[0].GetNodeToBlame() ||
			got[0].GetStatus().GetError() != `no executor on this node runs "container"` {
			t.Errorf("reported: %v", got)
		}
		s.assign(false, nil, "a")
		settle(time.Second)
		s.assign(false, []assignment{task})
		settle(time.Second)
		if got := s.all("a"); len(got) != 2 {
			t.Errorf("reported: %v", got)
		}
	})
}

func TestAWorkerThatForgotNeverReportsLess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, e := nullSet(t)
		w := start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		tasks := []assignment{
			nullTask("kept", running, nil), nullTask("parked", ready, nil), nullTask("orphan", running, nil),
			nullTask("ended", running, map[string]any{"runFor": "5s", "exitCode": 7}),
		}
		s.assign(true, tasks)
		settle(time.Second)
		s.wantStates(map[string]TaskState{"kept": running, "parked": ready, "orphan": running, "ended": running})
		w.stop()
		settle(10 * time.Second)

		// The worker comes back without any memory. Nothing may happen before
		// the managers have spoken.
		start(t, n, set, nil)
		s = d.await(t)
		s.welcome()
		settle(time.Minute)
		wantHeld(t, e, "ended", "kept", "orphan", "parked")
		s.assign(true, []assignment{
			tasks[0].known(running), tasks[1].known(ready), tasks[3].known(running),
			nullTask("lost", running, nil).known(running),
			nullTask("lostearly", running, nil).known(TaskState_PREPARING),
			nullTask("lostparked", ready, map[string]any{"prepareDelay": "500ms"}).known(ready),
			nullTask("past", running, nil).known(complete),
		})
		settle(time.Second)
		s.wantStates(map[string]TaskState{
			"kept": running, "parked": ready, "ended": failed, "lost": failed, "lostearly": running, "lostparked": ready,
		})
		for id, floor := range map[string]TaskState{"kept": running, "parked": ready, "ended": running, "lost": running, "lostparked": ready} {
			for _, reported := range s.all(id) {
				if reported.GetStatus().GetState() < floor {
					t.Errorf("%s was reported as %s though %s was known", id, reported.GetStatus().GetState(), floor)
				}
			}
		}
		if got := s.state("ended"); got.GetRuntime().GetExitCode() != 7 {
			t.Errorf("ended: %v", got)
		}
		wantHeld(t, e, "ended", "kept", "lostearly", "lostparked", "parked")
	})
}

// TestAForgottenTaskIsNotTakenForStopped has a worker without memory told to stop
// what its predecessor began and never reported, and to forget it.
func TestAForgottenTaskIsNotTakenForStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, e := nullSet(t)
		w := start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("stopped", running, nil), nullTask("forgotten", running, nil)})
		settle(time.Second)
		w.stop()

		start(t, n, set, nil)
		s = d.await(t)
		s.welcome()
		stranger := nullTask("stranger", shutdown, nil)
		stranger.SpecDigest, stranger.spec = []byte("strange"), &TaskSpec{Runtime: &TaskSpec_Generic{Generic: &GenericRuntime{Kind: "strange"}}}
		s.assign(true, []assignment{nullTask("stopped", shutdown, nil), nullTask("forgotten", shutdown, nil), nullTask("unbegun", shutdown, nil), stranger})
		s.assign(false, nil, "forgotten")
		settle(time.Second)
		s.wantStates(map[string]TaskState{"stopped": shutdown, "unbegun": shutdown, "stranger": shutdown})
		listed, err := e.List(t.Context(), "")
		if err != nil || len(listed) != 1 || listed[0].TaskID != "stopped" || listed[0].State == sdk.Running {
			t.Errorf("the executor has %+v, %v; want the stopped one alone, and it stopped", listed, err)
		}
	})
}

func TestBadSettingsAreAllNamed(t *testing.T) {
	t.Parallel()
	_, err := workerd.New(workerd.Env{}, workerd.Config{})
	if err == nil {
		t.Error("no error without a way to dial")
	}
	cfg := workerd.DefaultConfig()
	cfg.NodeID = "a/b"
	cfg.Dispatchers = []string{"nowhere"}
	cfg.AckTimeout = 0
	_, err = workerd.New(workerd.Env{Dial: newNetwork().dial}, cfg)
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 3 {
		t.Errorf("error = %v, want three faults", err)
	}
}
