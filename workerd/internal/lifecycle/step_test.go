package lifecycle_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// states are all that a task can be observed in on a worker.
var states = []TaskState{
	TaskState_ASSIGNED, TaskState_ACCEPTED, TaskState_PREPARING, TaskState_READY, TaskState_STARTING, TaskState_RUNNING,
	TaskState_COMPLETE, TaskState_SHUTDOWN, TaskState_FAILED, TaskState_REJECTED,
}

// desirable are all that can be desired.
var desirable = []TaskState{
	TaskState_READY, TaskState_RUNNING, TaskState_COMPLETE, TaskState_SHUTDOWN, TaskState_REMOVE,
}

func TestNextIsTheTableOfTheAgent(t *testing.T) {
	t.Parallel()
	none := lifecycle.Step{}
	accept := lifecycle.Step{Op: lifecycle.Advance, To: TaskState_ACCEPTED, Message: "accepted"}
	preparing := lifecycle.Step{Op: lifecycle.Advance, To: TaskState_PREPARING, Message: "preparing"}
	prepare := lifecycle.Step{Op: lifecycle.Prepare, To: TaskState_READY, Message: "prepared"}
	starting := lifecycle.Step{Op: lifecycle.Advance, To: TaskState_STARTING, Message: "starting"}
	start := lifecycle.Step{Op: lifecycle.Start, To: TaskState_RUNNING, Message: "started"}
	wait := lifecycle.Step{Op: lifecycle.Wait, To: TaskState_COMPLETE, Message: "finished"}
	stop := lifecycle.Step{Op: lifecycle.Shutdown, To: TaskState_SHUTDOWN, Message: "shutdown"}
	// One row a state; columns are desirable: READY, RUNNING, COMPLETE,
	// SHUTDOWN, REMOVE. A task that is past READY although only that is desired
	// is left alone.
	for state, row := range map[TaskState][5]lifecycle.Step{
		TaskState_TASK_STATE_UNSPECIFIED: {accept, accept, accept, stop, stop},
		TaskState_NEW:                    {accept, accept, accept, stop, stop},
		TaskState_PENDING:                {accept, accept, accept, stop, stop},
		TaskState_ASSIGNED:               {accept, accept, accept, stop, stop},
		TaskState_ACCEPTED:               {preparing, preparing, preparing, stop, stop},
		TaskState_PREPARING:              {prepare, prepare, prepare, stop, stop},
		TaskState_READY:                  {none, starting, starting, stop, stop},
		TaskState_STARTING:               {none, start, start, stop, stop},
		TaskState_RUNNING:                {none, wait, wait, stop, stop},
		TaskState_COMPLETE:               {none, none, none, none, none},
		TaskState_SHUTDOWN:               {none, none, none, none, none},
		TaskState_FAILED:                 {none, none, none, none, none},
		TaskState_REJECTED:               {none, none, none, none, none},
		TaskState_ORPHANED:               {none, none, none, none, none},
	} {
		for i, want := range row {
			if got := lifecycle.Next(state, desirable[i]); got != want {
				t.Errorf("Next(%s, desired %s) = %+v, want %+v", state, desirable[i], got, want)
			}
		}
	}
}

func TestStatesOnlyRiseAndEveryTaskComesToRest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		state := rapid.SampledFrom(states).Draw(r, "state")
		desired := rapid.SampledFrom(desirable).Draw(r, "desired")
		for range len(states) {
			step := lifecycle.Next(state, desired)
			if step.Op == lifecycle.Nothing {
				return
			}
			if step.To <= state {
				r.Fatalf("%s to %s by %s", state, step.To, step.Op)
			}
			if step.Op == lifecycle.Advance && step.To > desired {
				r.Fatalf("%s to %s though only %s is desired", state, step.To, desired)
			}
			state = step.To
		}
		r.Fatalf("still moving at %s", state)
	})
}

func TestFailureBeforeStartingIsARejection(t *testing.T) {
	t.Parallel()
	for state, want := range map[TaskState]TaskState{
		TaskState_ASSIGNED:  TaskState_REJECTED,
		TaskState_ACCEPTED:  TaskState_REJECTED,
		TaskState_PREPARING: TaskState_REJECTED,
		TaskState_READY:     TaskState_REJECTED,
		TaskState_STARTING:  TaskState_FAILED,
		TaskState_RUNNING:   TaskState_FAILED,
	} {
		if got := lifecycle.Failure(state); got != want {
			t.Errorf("Failure(%s) = %s, want %s", state, got, want)
		}
	}
}

func TestStatusSurvivesItsReport(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var s lifecycle.Status
	s.Move(TaskState_ACCEPTED, at, "accepted")
	s.Move(TaskState_PREPARING, at.Add(time.Second), "preparing")
	s.Error = "no route to registry"
	s.NodeToBlame = true
	s.Runtime = &RuntimeStatus{Id: "c1", Pid: 17}
	s.Ports = []*PortConfig{{TargetPort: 80, PublishedPort: 30001}}
	got := lifecycle.FromReport(s.Report("t1"))
	if diff := cmp.Diff(s, got, protocmp.Transform()); diff != "" {
		t.Errorf("status changed (-want +got):\n%s", diff)
	}
}

func TestMoveClearsTheErrorAndNeverGoesBack(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := lifecycle.Status{State: TaskState_PREPARING, Error: "slow"}
	copied := s
	s.Move(TaskState_READY, at, "prepared")
	if s.Error != "" || s.State != TaskState_READY {
		t.Errorf("after Move: %+v", s)
	}
	if len(copied.Times) != 0 || copied.Error != "slow" {
		t.Errorf("the copy changed: %+v", copied)
	}
	s.Move(TaskState_PREPARING, at, "preparing")
	if s.State != TaskState_READY || len(s.Times) != 1 {
		t.Errorf("after a Move back: %+v", s)
	}
}
