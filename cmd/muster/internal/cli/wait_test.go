package cli

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// A rollback can be reported as completed before the last task is reported as running:
// only one that was not asked for says that an update has failed.
func TestRollbackEndsWhenItsTasksRun(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rollback, converged bool
		done, failed        bool
	}{
		"an update was rolled back":                {failed: true},
		"another user rolled an update back":       {converged: true, done: true},
		"a rollback whose last task is to run yet": {rollback: true},
		"a rollback whose tasks run":               {rollback: true, converged: true, done: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &progress{quiet: true, c: &CLI{}, rollout: true, rollback: c.rollback}
			done, err := p.service(&musterv1.Service{
				Spec: &musterv1.ServiceSpec{Name: "web"}, Meta: &musterv1.Meta{Version: 7},
				UpdateStatus: &musterv1.UpdateStatus{State: musterv1.UpdateStatus_ROLLBACK_COMPLETED},
				Status:       &musterv1.ServiceStatus{DesiredTasks: 6, RunningTasks: 5, Converged: c.converged},
			}, 7)
			if done != c.done || errors.Is(err, errNotConverged) != c.failed {
				t.Errorf("done %v, error %v; want done %v, failed %v", done, err, c.done, c.failed)
			}
		})
	}
}

// Of tasks that fail one after the other for one reason, the first is named.
func TestSameFailureIsShownOnce(t *testing.T) {
	t.Parallel()
	p := &progress{quiet: true, c: &CLI{}}
	fails := func(id, why string) string {
		p.task(&musterv1.Task{Id: id, Status: &musterv1.TaskStatus{State: musterv1.TaskState_REJECTED, Error: why}})
		return p.trouble
	}
	first := fails("aaaaaaaaaaaaaaa", "no such image")
	if again := fails("bbbbbbbbbbbbbbb", "no such image"); again != first {
		t.Errorf("the same failure is shown again as %q", again)
	}
	if other := fails("ccccccccccccccc", "no space left"); other == first {
		t.Errorf("another failure is not shown: %q", other)
	}
}

func TestImageIsNamedOnlyWithoutAnotherReason(t *testing.T) {
	t.Parallel()
	for why, want := range map[string]string{
		"":                            "is being prepared (its image web:1 may still be pulled)",
		"network back has no address": "is being prepared: network back has no address",
	} {
		if got := cause(&musterv1.Task{
			Spec:   &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "web:1"}}},
			Status: &musterv1.TaskStatus{State: musterv1.TaskState_PREPARING, Error: why},
		}); got != want {
			t.Errorf("error %q: %q, want %q", why, got, want)
		}
	}
}

// Output that is not a terminal's gets a line when something changes, and none when
// a reason goes and comes back.
func TestPipedProgressPrintsEachChangeOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testPipedProgress)
}

func testPipedProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{c: &CLI{Err: &out}}
	show := func(running uint64, pending string) {
		if _, err := p.service(&musterv1.Service{
			Spec: &musterv1.ServiceSpec{Name: "web"}, Meta: &musterv1.Meta{Version: 1},
			Status: &musterv1.ServiceStatus{DesiredTasks: 2, RunningTasks: running, PendingReason: pending},
		}, 1); err != nil {
			t.Fatal(err)
		}
	}
	see := func(running uint64, pending string) {
		show(running, pending)
		time.Sleep(momentaryWait) // virtual
		show(running, pending)
	}
	for range 3 {
		see(0, "")
		see(0, "no node is ready")
		see(0, "no node has enough memory")
	}
	see(1, "no node has enough memory")
	see(1, "")
	see(2, "")
	see(2, "")
	want := "web: 0/2 running\nweb: 0/2 running: no node is ready\nweb: 0/2 running: no node has enough memory\n" +
		"web: 1/2 running: no node has enough memory\nweb: 2/2 running\n"
	if out.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestServiceTableShowsWhatRunsAndWhatIsWanted(t *testing.T) {
	t.Parallel()
	spec := func(image string) *musterv1.ServiceSpec {
		return &musterv1.ServiceSpec{Name: "web", Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: image}}}}
	}
	s := &musterv1.Service{Id: "s", Spec: spec("nginx:2")}
	if got, want := runsNow(s), "nginx:2"; got != want {
		t.Errorf("runs = %q, want %q", got, want)
	}
	s.EffectiveSpec = spec("nginx:1")
	if got, want := runsNow(s), "nginx:1 (wanted: nginx:2)"; got != want {
		t.Errorf("runs = %q, want %q", got, want)
	}
}
