package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// How the tasks of a wheel are replaced.
const (
	wheelSize    = 6
	wheelAtOnce  = 2
	wheelDelay   = 300 * time.Millisecond
	wheelTimeout = "2m"
)

// wheel is a service that is updated and rolled back, on one site.
type wheel struct{ *site }

// TestRollingUpdate has a service updated a few tasks at a time: well, then with a spec
// that fails, once for each thing that can be done about it.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	w := &wheel{startSite(t, siteConfig{embedded: true, devWorkers: 2})}
	w.ok(t, "service", "create", "--name", "wheel", "--replicas", fmt.Sprint(wheelSize), "--kind", "process", "--env", "COLOR=blue",
		"--update-parallelism", fmt.Sprint(wheelAtOnce), "--update-delay", wheelDelay.String(), "--update-monitor", "1s",
		"--rollback-parallelism", fmt.Sprint(wheelAtOnce), "--rollback-monitor", "0s",
		"--restart-delay", "500ms", "--timeout", wheelTimeout, "--", "/bin/sh", "-c", tick)
	for _, step := range []struct {
		name string
		run  func(*wheel, *testing.T)
	}{
		{"a few at a time", (*wheel).rolls},
		{"pause and roll back", (*wheel).pauses},
		{"roll back by itself", (*wheel).rollsBack},
		{"change the order", (*wheel).startsFirst},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(w, t) }) {
			return
		}
	}
	w.removeService(t, "wheel")
	w.awaitNoTasks(t)
}

// runs is the flag that has the tasks run a command.
func runs(t *testing.T, color string, command ...string) []string {
	t.Helper()
	payload, err := json.Marshal(map[string]any{"command": command, "env": []string{"COLOR=" + color}})
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--payload", string(payload)}
}

// update has muster update the wheel, and wait.
func (w *wheel) update(t *testing.T, flags ...string) said {
	t.Helper()
	return w.muster(t, append(append([]string{"service", "update", "--timeout", wheelTimeout}, flags...), "wheel")...)
}

// wantState checks how far the last update claims to be.
func (w *wheel) wantState(t *testing.T, want musterv1.UpdateStatus_State) {
	t.Helper()
	if got := strings.TrimSpace(w.ok(t, "service", "inspect", "--format", "{{.updateStatus.state}}", "wheel")); got != want.String() {
		t.Errorf("the update is %s, want %s", got, want)
	}
}

// rolls: all tasks are replaced, and never more than two have their turn at once.
func (w *wheel) rolls(t *testing.T) {
	blue := w.awaitRunning(t, "wheel", wheelSize)
	got := w.update(t, runs(t, "green", "/bin/sh", "-c", tick)...)
	if got.code != 0 || !strings.Contains(got.errs, "update in progress") || !strings.Contains(got.errs, "converged") {
		t.Fatalf("service update: %s", got)
	}
	w.wantState(t, musterv1.UpdateStatus_COMPLETED)
	var made []*musterv1.Task
	for id, task := range w.awaitRunning(t, "wheel", wheelSize) {
		if blue[id] != nil {
			t.Errorf("task %s is of the old spec", task.Name)
		}
		made = append(made, task)
	}
	if err := rig.Turns(made, wheelAtOnce, wheelDelay); err != nil {
		t.Error(err)
	}
	// Each slot had one turn: there is one task for each color, and no other.
	if all, err := w.listTasks(t.Context(), "wheel"); err != nil || len(all) != 2*wheelSize {
		t.Errorf("there were %d tasks (%v), want %d", len(all), err, 2*wheelSize)
	}
}

// untouched returns those of some tasks that run as before.
func (w *wheel) untouched(t *testing.T, before tasks) tasks {
	t.Helper()
	all, err := w.listTasks(t.Context(), "wheel")
	if err != nil {
		t.Fatal(err)
	}
	left := tasks{}
	for _, task := range all {
		if before[task.Id] != nil && task.Status.GetState() == musterv1.TaskState_RUNNING && task.DesiredState == musterv1.TaskState_RUNNING {
			left[task.Id] = before[task.Id]
		}
	}
	return left
}

// awaitTasks waits until a task runs in each slot and none else is to. After an
// update that was rolled back they are not of the service's spec.
func (w *wheel) awaitTasks(t *testing.T) tasks {
	t.Helper()
	run := tasks{}
	wait.Within(t, runTimeout, "all tasks run", func(ctx context.Context) error {
		all, err := w.listTasks(ctx, "wheel")
		if err != nil {
			return err
		}
		clear(run)
		var others []string
		for _, task := range all {
			switch {
			case task.DesiredState > musterv1.TaskState_RUNNING:
			case task.Status.GetState() == musterv1.TaskState_RUNNING:
				run[task.Id] = task
			default:
				others = append(others, fmt.Sprint(task.Name, " ", task.Status))
			}
		}
		if len(run) != wheelSize || len(others) > 0 {
			return fmt.Errorf("%d run; others: %v", len(run), others)
		}
		return nil
	})
	return run
}

// wantGreen checks that the wheel runs as before the update that failed, and that
// tasks that had no turn in it never noticed.
func (w *wheel) wantGreen(t *testing.T, untouched tasks) {
	t.Helper()
	after := tasks{}
	for id, task := range w.awaitTasks(t) {
		if p, ok := rig.ReadProcess(int(task.Status.Runtime.GetPid())); !ok || !slices.Contains(p.Env, "COLOR=green") {
			t.Errorf("task %s says that it is process %d, which is not green", task.Name, task.Status.Runtime.GetPid())
		}
		if untouched[id] != nil {
			after[id] = task
		}
	}
	w.sameRuns(t, untouched, after)
}

// pauses: an update whose tasks fail pauses, the command says so and exits with 6,
// and a rollback goes back.
func (w *wheel) pauses(t *testing.T) {
	green := w.awaitRunning(t, "wheel", wheelSize)
	got := w.update(t, runs(t, "red", "/there/is/no/such/program")...)
	if got.code != 6 || !strings.Contains(got.errs, "update paused") || !strings.Contains(got.errs, "muster service rollback wheel") {
		t.Fatalf("service update: %s", got)
	}
	w.wantState(t, musterv1.UpdateStatus_PAUSED)
	left := w.untouched(t, green)
	// What fails before it runs keeps its place until the update has paused.
	if n := wheelSize - len(left); n < 1 || n > wheelAtOnce {
		t.Errorf("%d tasks were replaced, want 1 to %d", n, wheelAtOnce)
	}
	w.ok(t, "service", "rollback", "--timeout", wheelTimeout, "wheel")
	w.wantState(t, musterv1.UpdateStatus_ROLLBACK_COMPLETED)
	w.wantGreen(t, left)
}

// rollsBack: an update whose tasks fail is rolled back, if that is what it says, and
// the command exits with 6. With no change it is tried again.
func (w *wheel) rollsBack(t *testing.T) {
	for i, flags := range [][]string{append(runs(t, "red", "/bin/sh", "-c", "exit 4"), "--update-failure-action", "rollback"), nil} {
		green := w.awaitTasks(t)
		got := w.update(t, flags...)
		if got.code != 6 || !strings.Contains(got.errs, "rolled back") {
			t.Fatalf("service update, for the %dth time: %s", i+1, got)
		}
		w.wantState(t, musterv1.UpdateStatus_ROLLBACK_COMPLETED)
		left := w.untouched(t, green)
		if len(left) == wheelSize {
			t.Errorf("no task was replaced in the %dth try", i+1)
		}
		w.wantGreen(t, left)
	}
	// What does not touch the tasks is applied, and they run on.
	green := w.awaitTasks(t)
	w.ok(t, "service", "update", "--timeout", wheelTimeout, "--label-add", "rolled=back", "wheel")
	w.wantGreen(t, green)
	// What still has the failed program is refused.
	if got := w.update(t, "--constraint-add", "node.labels.rolled!=back"); got.code != 2 || !strings.Contains(got.errs, "--payload: the last update of service \"wheel\" changed this, failed and was rolled back") {
		t.Errorf("service update of something else: %s", got)
	}
	w.wantGreen(t, green)
}

// startsFirst: with the other order each task runs until the next one does.
func (w *wheel) startsFirst(t *testing.T) {
	before := w.awaitTasks(t)
	got := w.update(t, append(runs(t, "yellow", "/bin/sh", "-c", tick), "--update-order", "start-first", "--update-parallelism", "0")...)
	if got.code != 0 {
		t.Fatalf("service update: %s", got)
	}
	after := map[uint64]*musterv1.Task{}
	for _, task := range w.awaitRunning(t, "wheel", wheelSize) {
		after[task.Slot] = task
	}
	var all []*musterv1.Task
	wait.Within(t, runTimeout, "the tasks before have ended", func(ctx context.Context) (err error) {
		if all, err = w.listTasks(ctx, "wheel"); err != nil {
			return err
		}
		for _, task := range all {
			if before[task.Id] != nil && task.Status.GetState() <= musterv1.TaskState_RUNNING {
				return fmt.Errorf("task %s is %s", task.Name, task.Status.GetState())
			}
		}
		return nil
	})
	for _, task := range all {
		if before[task.Id] == nil {
			continue
		}
		delete(before, task.Id)
		ended, _ := rig.Reached(task, task.Status.GetState())
		if ran, ok := rig.Reached(after[task.Slot], musterv1.TaskState_RUNNING); !ok || ended.Before(ran) {
			t.Errorf("task %s ended at %v, and the next one ran at %v only", task.Name, ended, ran)
		}
	}
	if len(before) > 0 {
		t.Errorf("no record remembers %v", before)
	}
}
