package plan_test

import (
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const unstarted = musterv1.TaskState_NEW

// checkDesired checks what is desired of all live tasks.
func checkDesired(t *testing.T, w *world, want musterv1.TaskState, n int) {
	t.Helper()
	live := 0
	for _, task := range w.sorted() {
		if !task.Live() {
			continue
		}
		live++
		if task.Desired() != want {
			t.Errorf("task %s is desired %v, want %v", task.Key, task.Desired(), want)
		}
	}
	if live != n {
		t.Errorf("%d live tasks, want %d", live, n)
	}
}

func TestTasksStartWhenDependenciesAreThere(t *testing.T) {
	for name, mode := range map[string]func(*world){"replicated": func(w *world) { w.replicas(3) }, "global": (*world).global} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.spec(null(1))
			mode(w)
			w.waits = true
			if p := w.reconcile(t); !p.WatchesDependencies {
				t.Error("the plan does not watch dependencies")
			}
			checkDesired(t, w, unstarted, 3)
			w.waits = false
			if p := w.reconcile(t); p.WatchesDependencies {
				t.Error("the plan watches dependencies that are there")
			}
			checkDesired(t, w, running, 3)
		})
	}
}

func TestFailedTaskRestartsWithoutDependencies(t *testing.T) {
	w := newWorld()
	w.spec(null(1, restart(&musterv1.RestartPolicy{Delay: seconds(0)})))
	w.converge(t)
	w.waits = true
	w.report(w.live(1)[0], failed)
	w.reconcile(t)
	checkDesired(t, w, running, 1)
}

func TestTaskOfALostNodeMovesWithoutDependencies(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.converge(t)
	w.waits = true
	lost := w.live(1)[0]
	delete(w.nodes, lost.NodeID)
	w.reconcile(t)
	for _, task := range w.live(1) {
		if task.ID != lost.ID && task.Desired() == unstarted {
			t.Errorf("task %s waits", task.Key)
		}
	}
	w.converge(t)
}

func TestUpdateLeavesTasksUntilDependenciesAreThere(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(2)
	w.converge(t)
	before := w.service.TaskDigest
	w.spec(null(2))
	w.waits = true
	if p := w.reconcile(t); !p.WatchesDependencies {
		t.Error("the plan does not watch dependencies")
	}
	checkDesired(t, w, running, 2)
	for _, task := range w.sorted() {
		if string(task.Record.SpecDigest) != string(before) {
			t.Errorf("task %s is of the new spec", task.Key)
		}
	}
	w.waits = false
	w.converge(t)
	checkDesired(t, w, running, 2)
	for _, task := range w.sorted() {
		if task.Live() && string(task.Record.SpecDigest) != string(w.service.TaskDigest) {
			t.Errorf("task %s is of the former spec", task.Key)
		}
	}
}

// TestWaitingTaskOfAFormerSpecNeverStarts changes the spec while all tasks wait.
func TestWaitingTaskOfAFormerSpecNeverStarts(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(3)
	w.waits = true
	w.reconcile(t)
	before := w.service.TaskDigest
	w.spec(null(2))
	w.converge(t)
	w.waits = false
	for range 50 {
		w.reconcile(t)
		w.settle()
		for _, task := range w.sorted() {
			if string(task.Record.SpecDigest) == string(before) && task.Desired() == running {
				t.Fatalf("task %s of the former spec starts", task.Key)
			}
		}
		w.now = w.now.Add(time.Second)
	}
	w.converge(t)
	checkDesired(t, w, running, 3)
}

func TestRollbackAfterAFailureDoesNotWait(t *testing.T) {
	w := newWorld()
	w.service = nil
	w.spec(null(1))
	w.service.Spec.Update = &musterv1.UpdateConfig{Parallelism: 1, FailureAction: musterv1.UpdateConfig_ROLLBACK}
	w.converge(t)
	before := w.service.TaskDigest
	w.spec(null(2))
	w.reconcile(t)
	w.settle() // the former task stops
	w.reconcile(t)
	w.settle()
	for _, task := range w.live(1) {
		if task.State() == running {
			w.report(task, failed)
		}
	}
	w.waits = true
	w.reconcile(t)
	if !w.rollout.GetRolledBack() {
		t.Fatalf("the update is not rolled back: %v", w.rollout)
	}
	w.converge(t)
	for _, task := range w.live(1) {
		if string(task.Record.SpecDigest) != string(before) || task.Desired() != running {
			t.Errorf("task %s, desired %v, does not run the former spec", task.Key, task.Desired())
		}
	}
}

func TestRemovedServiceRunsOnUntilDependentsHaveStopped(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.converge(t)
	w.service, w.stopAfter = nil, w.now.Add(time.Minute)
	p := w.reconcile(t)
	checkDesired(t, w, running, 1)
	if !p.Next.Equal(w.stopAfter) {
		t.Errorf("looks again at %v, want %v", p.Next, w.stopAfter)
	}
	w.stopAfter = time.Time{}
	w.reconcile(t)
	checkDesired(t, w, running, 0)
}
