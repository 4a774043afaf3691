package plan_test

import (
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func onEvery(t *testing.T, p *musterv1.RestartPolicy) *world {
	w := newWorld()
	w.spec(null(1, restart(p)))
	w.global()
	w.converge(t)
	return w
}

func (w *world) wantOn(t *testing.T, want map[string]int) {
	t.Helper()
	for node, n := range want {
		if got := len(w.on(node)); got != n {
			t.Errorf("node %s has %d live tasks, want %d:%s", node, got, n, w.print())
		}
	}
}

func TestGlobalRunsOnEveryNode(t *testing.T) {
	w := newWorld()
	w.nodes["paused"], w.nodes["drained"], w.nodes["down"] = plan.Paused, plan.Drained, plan.Down
	w.spec(null(1))
	w.global()
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 1, "b": 1, "c": 1, "paused": 0, "drained": 0, "down": 0})
	w.nodes["d"] = plan.Up
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 1, "b": 1, "c": 1, "d": 1})
	if len(w.tasks) != 4 {
		t.Errorf("%d tasks, want 4", len(w.tasks))
	}
}

func TestGlobalNodeLeavesAndComesBack(t *testing.T) {
	for name, c := range map[string]plan.Condition{"down": plan.Down, "drained": plan.Drained} {
		t.Run(name, func(t *testing.T) {
			w := onEvery(t, nil)
			w.nodes["b"] = c
			w.converge(t)
			w.wantOn(t, map[string]int{"a": 1, "b": 0, "c": 1})
			w.nodes["b"] = plan.Up
			w.converge(t)
			w.wantOn(t, map[string]int{"a": 1, "b": 1, "c": 1})
			if got := w.on("b")[0].State(); got != running {
				t.Errorf("new task is %v", got)
			}
		})
	}
}

func TestGlobalNodeIsRemoved(t *testing.T) {
	w := onEvery(t, nil)
	delete(w.nodes, "b")
	w.reconcile(t)
	for _, task := range w.sorted() {
		if task.Record.NodeId == "b" {
			t.Errorf("record of a removed node's task stays: %s", task.Key)
		}
	}
}

func TestGlobalConstraintsFollowLabels(t *testing.T) {
	w := newWorld()
	w.labels["a"] = "ssd"
	w.spec(null(1, func(s *musterv1.TaskSpec) { s.Placement = &musterv1.Placement{Constraints: []string{"ssd"}} }))
	w.global()
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 1, "b": 0})
	w.labels["a"], w.labels["b"] = "", "ssd"
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 0, "b": 1})
}

func TestGlobalPausedNode(t *testing.T) {
	w := onEvery(t, nil)
	w.nodes["b"] = plan.Paused
	w.spec(null(2))
	w.converge(t)
	task := w.on("b")[0]
	if task.Record.SpecVersion != 1 {
		t.Error("updated on a paused node")
	}
	if w.rollout.GetState() != musterv1.UpdateStatus_COMPLETED {
		t.Errorf("a paused node holds up the update: %v", w.rollout)
	}
	w.report(task, failed)
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 1, "b": 0, "c": 1})
	w.nodes["b"] = plan.Up
	w.converge(t)
	w.wantOn(t, map[string]int{"b": 1})
}

// A node is paused between the end of a task and the start of its successor, and
// the service is updated once more.
func TestGlobalPausedInTheMidstOfAnUpdate(t *testing.T) {
	w := onEvery(t, nil)
	w.service.Spec.Update = &musterv1.UpdateConfig{}
	w.spec(null(2))
	w.reconcile(t)
	w.settle()
	w.nodes["b"] = plan.Paused
	w.spec(null(3))
	w.converge(t)
	task := w.on("b")[0]
	if task.Desired() != musterv1.TaskState_RUNNING || task.State() != musterv1.TaskState_RUNNING || task.Record.SpecVersion != 2 {
		t.Errorf("the paused node is left without a running task: %s", w.print())
	}
	w.nodes["b"] = plan.Up
	w.converge(t)
	if task := w.on("b")[0]; task.Record.SpecVersion != 3 {
		t.Errorf("the node is back, and its task was not updated: %s", w.print())
	}
}

// A task that is in the midst of its turn when its node is paused may never get
// anywhere. The update does not wait for it, nor does the next slot.
func TestGlobalPausedInTheMidstOfATurn(t *testing.T) {
	w := onEvery(t, nil)
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1}
	w.spec(null(2))
	w.reconcile(t)
	var begun string
	for _, task := range w.tasks {
		if task.Record.SpecVersion == 2 {
			begun = task.Record.NodeId
		}
	}
	if begun == "" {
		t.Fatalf("no turn has begun: %s", w.print())
	}
	w.nodes[begun] = plan.Paused
	for range 30 {
		if p := w.reconcile(t); p.Empty() && !p.Next.IsZero() {
			w.now = p.Next
		}
		for _, task := range w.tasks {
			if task.Record.NodeId != begun {
				w.assign(task, task.Record.NodeId)
				w.report(task, task.Desired())
			}
		}
	}
	if w.rollout.GetState() != musterv1.UpdateStatus_COMPLETED {
		t.Errorf("a paused node holds up the update: %v%s", w.rollout, w.print())
	}
}

// What has ended on a node before that was paused no longer counts in the
// update, which does not wait for the delay after it.
func TestGlobalPausedAfterATurn(t *testing.T) {
	w := onEvery(t, nil)
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1, Delay: seconds(20), FailureAction: musterv1.UpdateConfig_CONTINUE}
	w.spec(null(2))
	w.reconcile(t)
	for _, task := range w.sorted() {
		if task.Record.SpecVersion == 2 {
			w.assign(task, task.Record.NodeId)
			w.report(w.tasks[task.Key], failed)
			w.nodes[task.Record.NodeId] = plan.Paused
		}
	}
	w.reconcile(t)
	if w.of(2) != 1 {
		t.Errorf("want one more node to have its turn:%s", w.print())
	}
	if p := w.reconcile(t); !p.Empty() {
		t.Errorf("a second look finds more to do: %s", describe(p))
	}
}

func TestGlobalRestartsOnTheSameNode(t *testing.T) {
	w := onEvery(t, &musterv1.RestartPolicy{MaxAttempts: 1})
	w.report(w.on("b")[0], failed)
	w.reconcile(t)
	next := w.on("b")[0]
	if next.Desired() != ready || next.Record.Restarts != 1 {
		t.Errorf("replacement %v", next.Record)
	}
	w.converge(t)
	w.report(w.on("b")[0], failed)
	w.converge(t)
	w.wantOn(t, map[string]int{"a": 1, "b": 0, "c": 1})
}

func TestGlobalUpdatesEveryNode(t *testing.T) {
	w := onEvery(t, nil)
	w.spec(null(2))
	w.converge(t)
	for _, node := range []string{"a", "b", "c"} {
		if got := w.on(node); len(got) != 1 || got[0].Record.SpecVersion != 2 || got[0].State() != running {
			t.Errorf("node %s:%s", node, w.print())
		}
	}
}
