package tasks

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// taskOf returns the id of the task that a container belongs to.
func taskOf(told *executor.Task) string {
	if told.SharesNetworkOf != "" {
		return told.SharesNetworkOf
	}
	return told.ID
}

// newGroupMachine returns a machine whose tasks have two init containers, two sidecars and
// a post-stop container.
func newGroupMachine(t *testing.T) *machine {
	m := newMachine(t)
	m.capabilities = append(m.capabilities, executor.RunsGroups)
	m.exits = map[string]int32{"a-load": 0, "a-check": 0, "a-clean": 0}
	add := func(name string, role musterv1.GroupContainer_Role) {
		m.group = append(m.group, &musterv1.GroupContainer{Name: name, Role: role, Runtime: &musterv1.GroupContainer_Generic{
			Generic: &musterv1.GenericRuntime{Kind: kind},
		}})
	}
	add("load", musterv1.GroupContainer_INIT)
	add("proxy", musterv1.GroupContainer_SIDECAR)
	add("check", musterv1.GroupContainer_INIT)
	add("logs", musterv1.GroupContainer_SIDECAR)
	add("clean", musterv1.GroupContainer_POST_STOP)
	return m
}

// groupBubble is inBubble with a group.
func groupBubble(t *testing.T, test func(m *machine)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newGroupMachine(t)
		m.start().sync()
		m.settle(time.Second)
		m.calls = nil
		test(m)
	})
}

// sidecar reports whether a container is a sidecar, which may be started again.
func (m *machine) sidecar(id string) bool {
	return slices.ContainsFunc(m.group, func(c *musterv1.GroupContainer) bool {
		return c.GetRole() == musterv1.GroupContainer_SIDECAR && strings.HasSuffix(id, "-"+c.GetName())
	})
}

// wantOrder fails the test if a container is started before others that must have ended or
// run by then. The caller holds mu.
func (w *worker) wantOrder(id string) {
	task, name, ok := strings.Cut(id, "-")
	if len(w.group) == 0 || w.held[id] == nil || w.held[id].state != executor.StatePrepared {
		return
	}
	state := func(id string) executor.State {
		if h := w.held[id]; h != nil {
			return h.state
		}
		return executor.StateUnknown
	}
	role := musterv1.GroupContainer_ROLE_UNSPECIFIED
	if i := slices.IndexFunc(w.group, func(c *musterv1.GroupContainer) bool { return c.GetName() == name }); ok && i >= 0 {
		role = w.group[i].GetRole()
	}
	for _, c := range w.group {
		other := task + "-" + c.GetName()
		switch {
		case other == id:
		case c.GetRole() == musterv1.GroupContainer_INIT && state(other) != executor.StateEnded &&
			(role == musterv1.GroupContainer_ROLE_UNSPECIFIED || role == musterv1.GroupContainer_SIDECAR):
			w.t.Errorf("%s was started while init container %s is %s", id, other, state(other))
		case c.GetRole() == musterv1.GroupContainer_SIDECAR && state(other) == executor.StatePrepared && role == musterv1.GroupContainer_ROLE_UNSPECIFIED:
			w.t.Errorf("%s was started before sidecar %s", id, other)
		case role == musterv1.GroupContainer_POST_STOP && c.GetRole() != role && state(other) == executor.StateRunning:
			w.t.Errorf("%s was started while %s runs", id, other)
		}
	}
	if role == musterv1.GroupContainer_POST_STOP && state(task) == executor.StateRunning {
		w.t.Errorf("%s was started while the main container runs", id)
	}
}

// wantContainers fails the test unless these are the states of the containers of "a" that
// were reported last.
func (m *machine) wantContainers(want ...string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var got []string
	for _, c := range m.reported["a"].GetStatus().GetContainers() {
		got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %s %s", c.GetName(), c.GetState(), c.GetError()), " "))
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("containers = %q, want %q", got, want)
	}
}

func TestGroupStartsInOrderAndStopsInReverse(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.wantState("a", running)
		m.calls = slices.DeleteFunc(m.calls, func(c string) bool { return slices.Contains([]string{"wait a", "wait a-proxy", "wait a-logs"}, c) })
		m.wantCalls(
			"prepare a", "prepare a-load", "prepare a-proxy", "prepare a-check", "prepare a-logs", "prepare a-clean",
			"start a-load", "wait a-load", "start a-check", "wait a-check", "start a-proxy", "start a-logs", "start a",
		)
		m.settle(10 * time.Second)
		m.wantContainers("main RUNNING", "load COMPLETE", "proxy RUNNING", "check COMPLETE", "logs RUNNING", "clean READY")
		m.calls = nil
		m.want("a", shutdown)
		m.settle(time.Second)
		m.wantState("a", shutdown)
		m.wantCalls("shutdown a", "shutdown a-logs", "shutdown a-proxy", "shutdown a-check", "shutdown a-load", "start a-clean", "wait a-clean")
		m.wantContainers("main SHUTDOWN", "load COMPLETE", "proxy SHUTDOWN", "check COMPLETE", "logs SHUTDOWN", "clean COMPLETE")
		m.withdraw("a")
		m.settle(time.Second)
		m.wantCalls("remove a-clean", "remove a-logs", "remove a-check", "remove a-proxy", "remove a-load", "remove a")
	})
}

func TestSidecarsStopWhenMainContainerEnds(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(10 * time.Second)
		m.exit("a", 4)
		m.settle(time.Second)
		m.wantState("a", failed)
		m.wantError("a", "task: non-zero exit (4)")
		m.wantContainers(
			"main FAILED non-zero exit (4)", "load COMPLETE", "proxy SHUTDOWN", "check COMPLETE", "logs SHUTDOWN", "clean COMPLETE",
		)
	})
}

func TestFailedInitContainerFailsTask(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.exits["a-check"] = 7
		m.want("a", running)
		m.settle(10 * time.Second)
		m.wantState("a", failed)
		m.wantError("a", `init container "check": non-zero exit (7)`)
		m.wantStarts("a", 0)
		m.wantStarts("a-proxy", 0)
		m.wantStarts("a-clean", 1)
		m.wantContainers(
			"main SHUTDOWN", "load COMPLETE", "proxy SHUTDOWN", "check FAILED non-zero exit (7)", "logs SHUTDOWN", "clean COMPLETE",
		)
	})
}

func TestSidecarThatCannotStartFailsTask(t *testing.T) {
	groupBubble(t, func(m *machine) {
		release := m.hang("wait")
		m.want("a", running)
		m.settle(time.Second)
		m.fail("start", 1, nil)
		m.mu.Lock()
		m.faults["start"] = []fault{{hang: closed()}, {err: fatal("the container is unhealthy")}}
		m.mu.Unlock()
		release()
		m.settle(10 * time.Second)
		m.wantState("a", failed)
		m.wantError("a", `sidecar "proxy": the container is unhealthy`)
		m.wantStarts("a", 0)
		m.wantContainers(
			"main SHUTDOWN", "load COMPLETE", "proxy FAILED the container is unhealthy", "check COMPLETE", "logs SHUTDOWN", "clean COMPLETE",
		)
	})
}

// closed returns a channel on which a receive never waits.
func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestSidecarThatEndsIsStartedAgain(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(10 * time.Second)
		for range 3 {
			m.exit("a-proxy", 1)
			m.settle(2 * time.Minute)
		}
		m.wantState("a", running)
		m.wantStarts("a", 1)
		m.wantStarts("a-proxy", 4)
		m.wantStarts("a-load", 1)
		m.wantContainers("main RUNNING", "load COMPLETE", "proxy RUNNING", "check COMPLETE", "logs RUNNING", "clean READY")
		m.mu.Lock()
		if got := m.reported["a"].Status.Containers[2].Restarts; got != 3 {
			m.t.Errorf("restarts = %d, want 3", got)
		}
		if got := m.reported["a"].Status.Containers[2].Previous; got.GetExitCode() != 1 {
			m.t.Errorf("previous run = %v, want that of exit code 1", got)
		}
		m.mu.Unlock()
	})
}

// TestTaskIsNotHealthyWithoutSidecar ends a sidecar whose start then hangs.
func TestTaskIsNotHealthyWithoutSidecar(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(10 * time.Second)
		m.hang("start")
		m.exit("a-proxy", 1)
		m.settle(time.Minute)
		m.wantState("a", running)
		m.mu.Lock()
		health := m.reported["a"].Status.Runtime.GetHealth()
		m.mu.Unlock()
		if health.GetState() != musterv1.Health_STARTING || health.GetOutput() != `sidecar "proxy": it does not run` {
			m.t.Errorf("health = %v", health)
		}
	})
}

func TestPostStopContainerIsKilledWhenItsTimeIsOver(t *testing.T) {
	groupBubble(t, func(m *machine) {
		delete(m.exits, "a-clean")
		m.group[4].Timeout = durationpb.New(5 * time.Second)
		m.want("a", running)
		m.settle(10 * time.Second)
		m.exit("a", 0)
		m.settle(4 * time.Second)
		m.wantState("a", running)
		m.settle(2 * time.Second)
		m.wantState("a", completed)
		if h := m.held["a-clean"]; h.state != executor.StateEnded || h.exitCode != 137 {
			m.t.Errorf("the container is %s with exit code %d", h.state, h.exitCode)
		}
		m.wantContainers("main COMPLETE", "load COMPLETE", "proxy SHUTDOWN", "check COMPLETE", "logs SHUTDOWN",
			"clean FAILED did not end within 5s and was killed")
	})
}

func TestNoPostStopContainerRunsIfNothingHasBegun(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.want("a", ready)
		m.settle(time.Second)
		m.wantState("a", ready)
		m.want("a", shutdown)
		m.settle(time.Second)
		m.wantState("a", shutdown)
		m.wantStarts("a-clean", 0)
	})
}

func TestExecutorThatCannotRunGroupsRejectsThem(t *testing.T) {
	groupBubble(t, func(m *machine) {
		m.capabilities = []string{"logs"}
		m.start().sync()
		m.want("a", running)
		m.settle(time.Second)
		m.wantState("a", rejected)
		m.wantError("a", "executor fake cannot run tasks with a group")
		m.wantCalls("list ")
	})
}

// groupLives are lives of a task with a group.
var groupLives = map[string]func(m *machine){
	"runs and ends": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.exit("a", 3)
		m.settle(long)
		m.wantState("a", failed)
		m.wantError("a", "task: non-zero exit (3)")
		m.wantGroupEnded()
	},
	"is ready, runs and is stopped": func(m *machine) {
		m.want("a", ready)
		m.settle(long)
		m.wantState("a", ready)
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.want("a", shutdown)
		m.settle(long)
		m.wantState("a", shutdown)
		m.wantGroupEnded()
	},
	"has a sidecar that ends": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.exit("a-proxy", 1)
		m.settle(long)
		m.wantState("a", running)
		m.mu.Lock()
		if h := m.held["a-proxy"]; h == nil || h.state != executor.StateRunning {
			m.t.Error("the sidecar does not run")
		}
		m.mu.Unlock()
		m.wantStarts("a-proxy", 2)
		m.want("a", shutdown)
		m.settle(long)
		m.wantGroupEnded()
	},
	"is withdrawn while it runs": func(m *machine) {
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
	},
}

// wantGroupEnded fails the test if a container runs, or if one ran more or less often
// than it must.
func (m *machine) wantGroupEnded() {
	m.t.Helper()
	m.mu.Lock()
	for id, h := range m.held {
		if h.state == executor.StateRunning {
			m.t.Errorf("%s runs", id)
		}
	}
	m.mu.Unlock()
	for _, id := range []string{"a-load", "a-check", "a", "a-clean"} {
		m.wantStarts(id, 1)
	}
}

// TestGroupSurvivesCrashAtEveryPoint is TestCrashAtEveryPoint for tasks with a group:
// init containers and post-stop containers run once, and nothing is left behind.
func TestGroupSurvivesCrashAtEveryPoint(t *testing.T) {
	t.Parallel()
	for name, live := range groupLives {
		for _, loseDisk := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/loses disk=%t", name, loseDisk), func(t *testing.T) {
				t.Parallel()
				for point := 1; ; point++ {
					crashed := false
					if !t.Run(fmt.Sprint("point=", point), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							m := newGroupMachine(t)
							crashed = crashIn(t, m, live, point, loseDisk)
							for id := range m.held {
								t.Errorf("the executor still holds %s", id)
							}
						})
					}) {
						return
					}
					if !crashed {
						if point < 20 {
							t.Errorf("a life has %d crash points", point-1)
						}
						return
					}
				}
			})
		}
	}
}
