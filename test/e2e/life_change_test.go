package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/wait"
)

// names returns the names of the workers, in order.
func (l *life) names() []string { return slices.Sorted(maps.Keys(l.nodes)) }

// killPlugins: executors of one worker are killed; their tasks do not notice.
func (l *life) killPlugins(t *testing.T) {
	worker := l.names()[0]
	processes, containers, agents := l.awaitRunning(t, "ticker", 7), l.awaitRunning(t, "web", 3), l.awaitRunning(t, "agent", 3)
	for _, executor := range []string{"process", "docker"} {
		old, err := l.plugin(worker, executor)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took := wait.Within(t, runTimeout, "plugin "+executor+" is back", func(ctx context.Context) error {
			p, err := l.plugin(worker, executor)
			if err == nil && p.PID == old.PID {
				err = fmt.Errorf("it is still process %d", old.PID)
			}
			return err
		})
		t.Logf("plugin %s of %s was back after %v", executor, worker, took)
	}
	wait.Within(t, runTimeout, "plugins are healthy", func(ctx context.Context) error {
		if list := l.ok(t, "plugin", "ls", "--format", "{{.hostname}} {{.executor.name}} {{.executor.health}} {{.executor.message}}"); strings.Contains(list, "UNHEALTHY") {
			return fmt.Errorf("plugin ls says\n%s", list)
		}
		return nil
	})
	l.awaitTicks(t, processes)
	l.sameRuns(t, processes, l.awaitRunning(t, "ticker", 7))
	l.sameRuns(t, containers, l.awaitRunning(t, "web", 3))
	l.sameRuns(t, agents, l.awaitRunning(t, "agent", 3))
	l.checkContainers(t, containers)

	// A plugin that is new knows its tasks: it can stop one.
	l.ok(t, "service", "scale", "ticker=6", "--timeout", "2m")
	l.awaitProcesses(t, "ticker", 6)
}

// update: all tasks are replaced.
func (l *life) update(t *testing.T) {
	before := l.awaitRunning(t, "web", 3)
	l.ok(t, "service", "update", "--env-add", "COLOR=green", "--timeout", "2m", "web")
	after := l.awaitRunning(t, "web", 3)
	for id, task := range after {
		if before[id] != nil {
			t.Errorf("task %s is of the old spec", task.Name)
		}
		wait.Within(t, runTimeout, task.Name+" is green", func(ctx context.Context) error {
			if out := l.ok(t, "task", "logs", "--tail", "1", "--raw", id); out != "web in green\n" {
				return fmt.Errorf("it says %q", out)
			}
			return nil
		})
	}
	l.checkContainers(t, after)

	before = l.awaitRunning(t, "ticker", 6)
	code, service := l.rest(t, http.MethodGet, "/v1/services/ticker", nil)
	if code != http.StatusOK {
		t.Fatalf("get ticker: %d %v", code, service)
	}
	spec := service["spec"].(map[string]any)
	payload := spec["task"].(map[string]any)["generic"].(map[string]any)["payload"].(map[string]any)
	payload["env"] = []string{"COLOR=green"}
	version := service["meta"].(map[string]any)["version"].(string)
	if code, answer := l.rest(t, http.MethodPut, "/v1/services/ticker?version="+version, spec); code != http.StatusOK {
		t.Fatalf("update ticker: %d %v", code, answer)
	}
	for id, task := range l.awaitRunning(t, "ticker", 6) {
		if before[id] != nil {
			t.Errorf("task %s is of the old spec", task.Name)
		}
		l.checkProcess(t, task, "green")
	}
	// The same version again is stale.
	payload["env"] = []string{"COLOR=red"}
	if code, answer := l.rest(t, http.MethodPut, "/v1/services/ticker?version="+version, spec); code != http.StatusConflict {
		t.Errorf("update with a stale version: %d %v, want 409", code, answer)
	}
	l.awaitProcesses(t, "ticker", 6)
}

// drain: a node's tasks move elsewhere, and it takes tasks again later.
func (l *life) drain(t *testing.T) {
	worker := l.names()[1]
	node := l.nodes[worker]
	elsewhere := func(task *musterv1.Task) bool { return task.NodeId != node }
	l.ok(t, "node", "update", "--availability", "drain", worker)
	l.awaitRunningWhere(t, runTimeout, "ticker", 6, elsewhere)
	l.awaitRunningWhere(t, runTimeout, "web", 3, elsewhere)
	l.awaitRunningWhere(t, runTimeout, "agent", 2, elsewhere)
	l.awaitNode(t, worker, "empty", isEmpty)
	l.awaitNothingRuns(t, worker)
	l.ok(t, "node", "update", "--availability", "active", worker)
	l.awaitRunning(t, "agent", 3)
	// What moved stays: it is spread again by what is new.
	l.ok(t, "service", "update", "--force", "--timeout", "2m", "ticker")
	l.spread(t, l.awaitRunning(t, "ticker", 6))
	l.ok(t, "service", "update", "--force", "--timeout", "2m", "web")
	l.spread(t, l.awaitRunning(t, "web", 3))
}

// spread checks that tasks run on all nodes.
func (l *life) spread(t *testing.T, run tasks) {
	t.Helper()
	on := map[string]int{}
	for _, task := range run {
		on[task.NodeId]++
	}
	if len(on) != len(l.nodes) {
		t.Errorf("tasks by node are %v, want some on each of %d", on, len(l.nodes))
	}
}

// awaitNothingRuns waits until no process and no container of a worker's node
// runs.
func (l *life) awaitNothingRuns(t *testing.T, worker string) {
	t.Helper()
	node := l.nodes[worker]
	wait.Within(t, runTimeout, "nothing runs on "+worker, func(ctx context.Context) error {
		all, err := l.processes()
		if err != nil {
			return err
		}
		for _, p := range all {
			if p.Node == node {
				return fmt.Errorf("there is %s", p)
			}
		}
		running, err := l.containers(ctx, "running")
		if err != nil {
			return err
		}
		for _, c := range running {
			if c.node == node {
				return fmt.Errorf("there is container %s", c.name)
			}
		}
		return nil
	})
}

// killWorker: a worker dies. Its tasks run elsewhere soon; and when it is back,
// those that it still has are stopped.
func (l *life) killWorker(t *testing.T) {
	worker := l.names()[2]
	node := l.nodes[worker]
	elsewhere := func(task *musterv1.Task) bool { return task.NodeId != node }
	processes, containers := l.awaitRunning(t, "ticker", 6), l.awaitRunning(t, "web", 3)
	l.spread(t, processes)
	l.spread(t, containers)
	began := time.Now()
	if err := l.Process(worker).Kill(); err != nil {
		t.Fatal(err)
	}
	// A dispatcher that finds that it did not run for a while gives nodes time again.
	nowProcesses := l.awaitRunningWhere(t, 3*runTimeout, "ticker", 6, elsewhere)
	nowContainers := l.awaitRunningWhere(t, runTimeout, "web", 3, elsewhere)
	t.Logf("tasks of a killed worker ran elsewhere after %v", time.Since(began))
	l.awaitRunningWhere(t, runTimeout, "agent", 2, elsewhere)
	l.survivors(t, processes, nowProcesses, node)
	l.survivors(t, containers, nowContainers, node)

	if _, err := l.StartWorker(worker); err != nil {
		t.Fatal(err)
	}
	l.awaitNode(t, worker, "ready", isReady)
	l.awaitRunning(t, "agent", 3)
	l.awaitProcesses(t, "agent", 3)
	l.awaitProcesses(t, "ticker", 6)
	wait.Within(t, runTimeout, "three containers run", func(ctx context.Context) error {
		running, err := l.containers(ctx, "running")
		if err == nil && len(running) != 3 {
			err = fmt.Errorf("%d run", len(running))
		}
		return err
	})
	l.sameRuns(t, nowProcesses, l.awaitRunning(t, "ticker", 6))
	l.sameRuns(t, nowContainers, l.awaitRunning(t, "web", 3))
}

// survivors checks that tasks of other nodes were left alone.
func (l *life) survivors(t *testing.T, before, after tasks, node string) {
	t.Helper()
	for id, b := range before {
		if b.NodeId != node && after[id] == nil {
			t.Errorf("task %s was replaced, though its node lives", b.Name)
		}
	}
}

// restartWorkers: workers end and start in order, and no task notices.
func (l *life) restartWorkers(t *testing.T) {
	l.everywhere(t)
	processes, containers, agents := l.awaitRunning(t, "ticker", 6), l.awaitRunning(t, "web", 3), l.awaitRunning(t, "agent", 3)
	for _, worker := range []string{l.names()[2], l.names()[0]} {
		if err := l.Process(worker).Stop(); err != nil {
			t.Fatal(err)
		}
		if code := l.Process(worker).ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d", worker, code)
		}
		l.awaitNode(t, worker, "away", func(n *musterv1.Node) bool { return !isReady(n) })
		if _, err := l.StartWorker(worker); err != nil {
			t.Fatal(err)
		}
		l.awaitNode(t, worker, "ready", isReady)
	}
	l.sameRuns(t, processes, l.awaitRunning(t, "ticker", 6))
	l.sameRuns(t, containers, l.awaitRunning(t, "web", 3))
	l.sameRuns(t, agents, l.awaitRunning(t, "agent", 3))
	l.checkContainers(t, containers)
	// The logs of tasks that a former process of the worker started can be read.
	for id, task := range processes {
		if out := l.ok(t, "task", "logs", "--raw", id); !strings.HasPrefix(out, "tick 1 in green\n") {
			t.Errorf("logs of task %s begin with %.40q", task.Name, out)
		}
	}
}

// everywhere has tasks of all services on all nodes.
func (l *life) everywhere(t *testing.T) {
	l.ok(t, "service", "update", "--force", "--timeout", "2m", "ticker")
	l.spread(t, l.awaitRunning(t, "ticker", 6))
	l.ok(t, "service", "update", "--force", "--timeout", "2m", "web")
	l.spread(t, l.awaitRunning(t, "web", 3))
}

// killWorkerBriefly: a worker that is killed and started again at once finds its
// tasks, and nothing moves.
func (l *life) killWorkerBriefly(t *testing.T) {
	worker := l.names()[1]
	processes, containers, agents := l.awaitRunning(t, "ticker", 6), l.awaitRunning(t, "web", 3), l.awaitRunning(t, "agent", 3)
	if err := l.Process(worker).Kill(); err != nil {
		t.Fatal(err)
	}
	l.awaitNode(t, worker, "away", func(n *musterv1.Node) bool { return !isReady(n) })
	if _, err := l.StartWorker(worker); err != nil {
		t.Fatal(err)
	}
	l.awaitNode(t, worker, "ready", isReady)
	l.sameRuns(t, processes, l.awaitRunning(t, "ticker", 6))
	l.sameRuns(t, containers, l.awaitRunning(t, "web", 3))
	l.sameRuns(t, agents, l.awaitRunning(t, "agent", 3))
}
