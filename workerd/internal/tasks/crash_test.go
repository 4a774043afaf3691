package tasks

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// long is enough time for a task to get as far as it can.
const long = 5 * time.Minute

// lives are the lives of tasks during which the worker crashes.
var lives = map[string]func(m *machine){
	"runs and ends": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.wantStarts("a", 1)
		m.exit("a", 3)
		m.settle(long)
		m.wantState("a", failed)
		m.wantError("a", "task: non-zero exit (3)")
	},
	"succeeds": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.exit("a", 0)
		m.settle(long)
		m.wantState("a", completed)
		m.wantError("a", "")
		m.wantStarts("a", 1)
	},
	"is ready, runs and is stopped": func(m *machine) {
		m.want("a", ready)
		m.settle(long)
		m.wantState("a", ready)
		m.wantStarts("a", 0)
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.want("a", shutdown)
		m.settle(long)
		m.wantState("a", shutdown)
		m.wantStarts("a", 1)
		if code := m.reported["a"].GetStatus().GetRuntime().GetExitCode(); code != 143 {
			m.t.Errorf("exit code = %d, want 143", code)
		}
	},
	"is withdrawn while it runs": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.wantStarts("a", 1)
	},
	"is stopped before it begins": func(m *machine) {
		m.want("a", shutdown)
		m.settle(long)
		m.wantState("a", shutdown)
		m.wantStarts("a", 0)
	},
	"cannot be prepared": func(m *machine) {
		m.fail("prepare", 1, fatal("no such image"))
		m.want("a", running)
		m.settle(long)
		if state := m.reported["a"].GetStatus().GetState(); state != rejected && state != running {
			m.t.Errorf("reported: %v", m.reported["a"])
		}
	},
	"meets temporary errors": func(m *machine) {
		for _, method := range []string{"prepare", "start", "wait", "shutdown", "remove"} {
			m.fail(method, 2, temporary("engine is away"))
		}
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.want("a", shutdown)
		m.settle(long)
		m.wantState("a", shutdown)
		m.wantStarts("a", 1)
	},
	"learns of new labels": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.wantLabels("a", running, map[string]string{"k": "v"})
		m.settle(long)
		m.wantState("a", running)
		m.wantStarts("a", 1)
		if got := m.held["a"].told.ServiceLabels; got["k"] != "v" {
			m.t.Errorf("the executor knows the labels %v", got)
		}
	},
	"has a neighbour that is not assigned": func(m *machine) {
		m.held["stray"] = &heldTask{state: executor.StateRunning, ended: make(chan struct{})}
		m.worker.sync()
		m.want("a", running)
		m.settle(long)
		// The executors are looked at again from time to time.
		m.worker.manager.Sweep()
		m.settle(long)
		m.wantState("a", running)
		m.wantNothing("stray")
	},
	"was begun by an earlier worker and must stop": func(m *machine) {
		m.held["a"] = &heldTask{state: executor.StateRunning, ended: make(chan struct{})}
		m.wanted["a"] = newAssignment("a", nil)
		m.wanted["a"].DesiredState = shutdown
		m.worker.sync()
		m.settle(long)
		m.wantState("a", shutdown)
		if state := m.held["a"].state; state != executor.StateEnded {
			m.t.Errorf("the task is %s", state)
		}
	},
}

// TestCrashAtEveryPoint lets the worker crash before and after each write to the
// store and each effect of a call to the executor, with and without the loss of
// its disk. The worker that starts again must bring the task to where it should
// be, without a second start, and leave nothing behind.
func TestCrashAtEveryPoint(t *testing.T) {
	t.Parallel()
	for name, live := range lives {
		for _, loseDisk := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/loses disk=%t", name, loseDisk), func(t *testing.T) {
				t.Parallel()
				for point := 1; ; point++ {
					crashed := false
					if !t.Run(fmt.Sprint("point=", point), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { crashed = liveAndCrash(t, live, point, loseDisk) })
					}) {
						return
					}
					if !crashed {
						t.Logf("%d crash points", point-1)
						if point < 6 {
							t.Errorf("a life has %d crash points", point-1)
						}
						return
					}
				}
			})
		}
	}
}

// TestCrashTwice is the same with two crashes, the second within the recovery from
// the first.
func TestCrashTwice(t *testing.T) {
	t.Parallel()
	for name, live := range lives {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for point := 1; ; point++ {
				crashed := false
				for after := 1; after <= 6; after++ {
					if !t.Run(fmt.Sprintf("point=%d+%d", point, after), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							crashed = liveAndCrash(t, func(m *machine) {
								m.crashAgain = after
								live(m)
							}, point, false)
						})
					}) {
						return
					}
				}
				if !crashed {
					return
				}
			}
		})
	}
}

// liveAndCrash runs a life with a crash at a point, withdraws all tasks, and
// reports whether the point was reached.
func liveAndCrash(t *testing.T, live func(m *machine), point int, loseDisk bool) bool {
	return crashIn(t, newMachine(t), live, point, loseDisk)
}

// crashIn is liveAndCrash on a machine.
func crashIn(t *testing.T, m *machine, live func(m *machine), point int, loseDisk bool) bool {
	m.crashAt, m.loseDisk = point, loseDisk
	m.start()
	m.worker.manager.Begin()
	live(m)
	for id := range maps.Clone(m.wanted) {
		m.withdraw(id)
	}
	m.settle(long)
	// A task whose withdrawal was lost with the worker is removed with the next
	// complete set.
	m.worker.sync()
	m.settle(long)
	m.wantNothing("a")
	if n := len(m.disk.contents.Tasks); n > 0 {
		t.Errorf("the store still holds %d tasks", n)
	}
	for id, n := range m.starts {
		if n > 1 && !m.sidecar(id) {
			t.Errorf("%s was started %d times", id, n)
		}
	}
	if states := m.states("a"); len(states) > 0 && m.reported["a"].GetStatus().GetState() == musterv1.TaskState_ASSIGNED {
		t.Errorf("reported: %v", states)
	}
	return m.life > 1
}
