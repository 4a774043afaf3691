package tasks

import (
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// inspection is an event that sends the task's phase.
type inspection chan phase

func (i inspection) apply(t *task) { i <- t.phase }

// phaseOf returns the phase of a task once nothing is going on.
func (m *machine) phaseOf(id string) phase {
	m.t.Helper()
	synctest.Wait()
	m.worker.manager.mu.Lock()
	t := m.worker.manager.tasks[id]
	m.worker.manager.mu.Unlock()
	if t == nil {
		return phaseForgotten
	}
	phase := make(inspection, 1)
	t.post(phase)
	return <-phase
}

// hold puts a task into the executor that an earlier worker has begun.
func (m *machine) hold(id string, state executor.State) {
	m.held[id] = &heldTask{state: state, ended: make(chan struct{})}
	if state == executor.StateEnded {
		m.held[id].state = executor.StateRunning
		m.held[id].end(7)
	}
}

// assignedBefore makes a task part of the first complete set, in which the
// managers know a state of it.
func (m *machine) assignedBefore(id string, desired, known musterv1.TaskState) {
	m.wanted[id] = newAssignment(id, &dispatcherv1.AssignedTask{DesiredState: desired})
	if known != 0 {
		m.reported[id] = &dispatcherv1.ReportedStatus{TaskId: id, Status: &musterv1.TaskStatus{State: known}}
	}
}

// TestPhases brings a task into each phase, and out of it again.
func TestPhases(t *testing.T) {
	t.Parallel()
	var executed [phases]bool
	for _, test := range []struct {
		name  string
		phase phase
		// reach brings task "a" into the phase, in a worker that has a session.
		reach func(m *machine)
		// leave says what must become of it.
		leave func(m *machine)
	}{
		{
			"a task that must not run is not touched", phaseUntouched,
			func(m *machine) { m.want("a", shutdown) },
			func(m *machine) {
				m.wantState("a", shutdown)
				m.withdraw("a")
				m.settle(long)
				m.wantNothing("a")
				m.wantCalls()
			},
		},
		{
			"a task of the first complete set may have been started", phaseMaybeStarted,
			func(m *machine) {
				m.fail("list", 1000, temporary("engine is away"))
				m.hold("a", executor.StateRunning)
				m.assignedBefore("a", shutdown, 0)
				m.start().sync()
				m.settle(time.Minute)
			},
			func(m *machine) {
				m.wantState("a", 0)
				m.mend()
				m.settle(long)
				m.wantState("a", shutdown)
				if state := m.held["a"].state; state != executor.StateEnded {
					m.t.Errorf("the task is %s", state)
				}
			},
		},
		{
			"a task of which the managers know more is looked up", phaseLookUp,
			func(m *machine) {
				m.fail("list", 1000, temporary("engine is away"))
				m.hold("a", executor.StateRunning)
				m.assignedBefore("a", running, running)
				m.start().sync()
			},
			func(m *machine) {
				m.mend()
				m.settle(long)
				m.wantState("a", running)
				m.wantStarts("a", 0)
				m.exit("a", 1)
				m.settle(long)
				m.wantState("a", failed)
			},
		},
		{
			"a task that runs is held", phaseHeld,
			func(m *machine) { m.want("a", running); m.settle(long) },
			func(m *machine) {
				m.wantState("a", running)
				m.withdraw("a")
				m.settle(long)
				m.wantNothing("a")
				m.wantCalls("prepare a", "start a", "wait a", "shutdown a", "remove a")
			},
		},
		{
			"a task whose labels have changed is outdated", phaseOutdated,
			func(m *machine) {
				m.want("a", running)
				m.settle(long)
				m.fail("update", 3, temporary("engine is away"))
				m.wantLabels("a", running, map[string]string{"k": "v"})
			},
			func(m *machine) {
				m.settle(long)
				m.wantState("a", running)
				m.wantError("a", "")
				if p := m.phaseOf("a"); p != phaseHeld {
					m.t.Errorf("phase = %s after the update", p)
				}
				m.wantCalls("prepare a", "start a", "wait a", "update a", "wait a")
			},
		},
		{
			"a removed task is forgotten once the store takes writes", phaseRemoved,
			func(m *machine) {
				m.want("a", running)
				m.settle(long)
				m.refuse(errors.New("disk full"))
				m.withdraw("a")
				m.settle(time.Minute)
			},
			func(m *machine) {
				if m.held["a"] != nil {
					m.t.Error("the executor still holds the task")
				}
				m.refuse(nil)
				m.settle(time.Minute)
				m.wantNothing("a")
			},
		},
		{
			"a forgotten task can be assigned again", phaseForgotten,
			func(m *machine) {
				m.want("a", running)
				m.settle(long)
				m.withdraw("a")
				m.settle(long)
			},
			func(m *machine) {
				m.wantNothing("a")
				delete(m.reported, "a")
				m.want("a", running)
				m.settle(long)
				m.wantState("a", running)
				m.wantStarts("a", 2)
			},
		},
	} {
		executed[test.phase] = true
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				m.start().sync()
				m.settle(time.Second)
				m.calls = nil
				test.reach(m)
				if got := m.phaseOf("a"); got != test.phase {
					t.Errorf("phase = %s, want %s", got, test.phase)
				}
				test.leave(m)
			})
		})
	}
	for p, done := range executed {
		if !done {
			t.Errorf("phase %s has no test", phase(p))
		}
	}
}

func TestLookUpTellsWhatBecameOfTask(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		held           executor.State
		known, desired musterv1.TaskState
		want           musterv1.TaskState
		error          string
		starts         int
	}{
		"runs":                 {executor.StateRunning, running, running, running, "", 0},
		"runs, known to start": {executor.StateRunning, starting, running, running, "", 0},
		"ended":                {executor.StateEnded, running, running, failed, "task: non-zero exit (7)", 0},
		"prepared":             {executor.StatePrepared, ready, running, running, "", 1},
		"gone, known to run":   {0, running, running, failed, "task lost: the worker's state was lost and no executor knows the task", 0},
		"gone, known as ready": {0, ready, ready, ready, "", 0},
		"must stop":            {executor.StateRunning, running, shutdown, shutdown, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				if test.held != 0 {
					m.hold("a", test.held)
				}
				m.assignedBefore("a", test.desired, test.known)
				m.start().sync()
				m.settle(long)
				m.wantState("a", test.want)
				m.wantError("a", test.error)
				m.wantStarts("a", test.starts)
			})
		})
	}
}

// TestUnassignedTasksAreRemovedOnce removes what an executor holds and is not
// assigned, and nothing before the worker knows what is assigned.
func TestUnassignedTasksAreRemovedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.hold("stray", executor.StateRunning)
		m.hold("a", executor.StateRunning)
		m.assignedBefore("a", running, running)
		m.start()
		m.settle(long)
		m.wantCalls()
		m.worker.sync()
		m.settle(long)
		m.wantNothing("stray")
		m.wantState("a", running)
		if states := m.states("stray"); states != nil {
			t.Errorf("a task that is not assigned was reported: %v", states)
		}
	})
}

// TestIdleTasksCostNoGoroutine starts tasks that rest: a task that is ready costs
// no goroutine, and one that runs costs only the call that waits for its end.
func TestIdleTasksCostNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tasks = 1000
		m := newMachine(t)
		m.start().sync()
		m.settle(time.Second)
		before := runtime.NumGoroutine()
		// grown returns how many more goroutines there are, once those that have
		// returned are gone or have had time to be.
		grown := func(most int) (n int) {
			for range 100_000 {
				if n = runtime.NumGoroutine() - before; n <= most {
					break
				}
				runtime.Gosched()
			}
			return n
		}
		assign := func(desired musterv1.TaskState) {
			msg := &dispatcherv1.Assignments{Specs: []*dispatcherv1.AssignedSpec{(&machine{}).spec()}}
			for i := range tasks {
				msg.Tasks = append(msg.Tasks, newAssignment(string(rune('A'+i)), &dispatcherv1.AssignedTask{DesiredState: desired}))
			}
			m.worker.assign(msg)
			m.settle(long)
		}
		assign(ready)
		// The runtime may have begun some of its own.
		const own = 5
		if n := grown(own); n > own {
			t.Errorf("%d ready tasks cost %d goroutines", tasks, n)
		}
		assign(running)
		if n := grown(tasks + own); n > tasks+own {
			t.Errorf("%d running tasks cost %d goroutines", tasks, n)
		}
		assign(shutdown)
		if n := grown(own); n > own {
			t.Errorf("%d ended tasks cost %d goroutines", tasks, n)
		}
	})
}
