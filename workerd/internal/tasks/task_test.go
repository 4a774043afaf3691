package tasks

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// inBubble runs a test with a worker that has a session.
func inBubble(t *testing.T, test func(m *machine)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.start().sync()
		m.settle(time.Second)
		m.calls = nil
		test(m)
	})
}

type count int

func (count) apply(*task) {}

// TestInboxHasOneOwner has many goroutines put events: each event is taken once,
// and never by two owners at a time.
func TestInboxHasOneOwner(t *testing.T) {
	t.Parallel()
	var b inbox
	var wg sync.WaitGroup
	// The race detector would see two owners.
	taken := 0
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if !b.put(count(1)) {
					continue
				}
				for _, more, owned := b.take(); owned; _, more, owned = b.take() {
					taken += 1 + len(more)
				}
			}
		})
	}
	wg.Wait()
	if taken != 8000 {
		t.Errorf("%d events were taken, want 8000", taken)
	}
}

func TestInboxKeepsEventsWhenReleased(t *testing.T) {
	t.Parallel()
	var b inbox
	if !b.put(count(1)) || b.put(count(2)) {
		t.Fatal("the first put acquires ownership, and only that one")
	}
	b.release()
	if !b.put(count(3)) {
		t.Error("ownership was not released")
	}
	if first, more, owned := b.take(); first == nil || len(more) != 2 || !owned {
		t.Errorf("took %v, %v, %t", first, more, owned)
	}
}

func TestCancelledCallDecidesNothing(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.hang("prepare")
		m.want("a", running)
		m.settle(time.Second)
		m.wantState("a", preparing)
		m.want("a", shutdown)
		m.settle(time.Second)
		m.wantState("a", shutdown)
		m.wantError("a", "")
		m.wantCalls("prepare a", "shutdown a")
	})
}

// TestUpdateDoesNotInterruptPrepare changes labels while a task is prepared: the
// call is not begun again, and the task starts with the new labels.
func TestUpdateDoesNotInterruptPrepare(t *testing.T) {
	inBubble(t, func(m *machine) {
		release := m.hang("prepare")
		m.want("a", running)
		m.settle(time.Second)
		m.wantLabels("a", running, map[string]string{"k": "v"})
		m.settle(time.Second)
		release()
		m.settle(time.Second)
		m.wantState("a", running)
		if got := m.held["a"].told.ServiceLabels; got["k"] != "v" {
			m.t.Errorf("the executor knows the labels %v", got)
		}
		m.wantCalls("prepare a", "update a", "start a", "wait a")
	})
}

func TestUpdateDuringUpdateIsToldToo(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		release := m.hang("update")
		m.wantLabels("a", running, map[string]string{"k": "1"})
		m.settle(time.Second)
		m.wantLabels("a", running, map[string]string{"k": "2"})
		m.settle(time.Second)
		release()
		m.settle(time.Second)
		if got := m.held["a"].told.ServiceLabels; got["k"] != "2" {
			m.t.Errorf("the executor knows the labels %v", got)
		}
	})
}

func TestRefusedUpdateLeavesTaskRunning(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.fail("update", 1, fatal("labels are too long"))
		m.wantLabels("a", running, map[string]string{"k": "v"})
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantCalls("prepare a", "start a", "wait a", "update a", "wait a")
	})
}

func TestSlowCallNamesExecutor(t *testing.T) {
	inBubble(t, func(m *machine) {
		release := m.hang("prepare")
		m.want("a", running)
		m.settle(slowCall - time.Second)
		m.wantError("a", "")
		m.settle(2 * time.Second)
		m.wantError("a", "executor fake has not answered to prepare within 10s; it is given more time")
		release()
		m.settle(time.Second)
		m.wantState("a", running)
		m.wantError("a", "")
	})
}

func TestInterruptedWaitIsReportedOnlyIfItLasts(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.fail("wait", 1, temporary("engine is away"))
		m.wantLabels("a", running, map[string]string{"k": "1"})
		m.settle(time.Minute)
		if got := len(m.history["a"]); got > 6 {
			m.t.Errorf("%d reports", got)
		}
		for _, r := range m.history["a"] {
			if text := r.GetStatus().GetError(); text != "" {
				m.t.Errorf("an interruption was reported: %s", text)
			}
		}
		m.fail("wait", 10, temporary("engine is away"))
		m.wantLabels("a", running, map[string]string{"k": "2"})
		m.settle(5 * time.Second)
		m.wantError("a", "engine is away")
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantError("a", "")
	})
}

func TestShutdownThatFailsBecomesKill(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.calls = nil
		m.fail("shutdown", 10, temporary("engine is busy"))
		m.want("a", shutdown)
		m.settle(time.Minute)
		m.wantState("a", shutdown)
		m.wantCalls("shutdown a", "terminate a")
		if code := m.reported["a"].GetStatus().GetRuntime().GetExitCode(); code != 137 {
			m.t.Errorf("exit code = %d, want 137", code)
		}
	})
}

func TestRefusedRemoveIsForgotten(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.fail("remove", 1, fatal("no permission"))
		m.withdraw("a")
		m.settle(time.Minute)
		if ids := m.worker.manager.IDs(); len(ids) != 0 {
			m.t.Errorf("the worker still knows %v", ids)
		}
		// The next worker finds it.
		m.start().sync()
		m.settle(time.Minute)
		m.wantNothing("a")
	})
}

func TestFatalErrorsSetState(t *testing.T) {
	for method, want := range map[string]musterv1.TaskState{
		"prepare": rejected, "start": failed, "wait": failed, "shutdown": failed,
	} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, func(m *machine) {
				m.fail(method, 1, fatal("broken"))
				m.want("a", running)
				m.settle(time.Minute)
				m.want("a", shutdown)
				m.settle(time.Minute)
				m.wantState("a", want)
				m.wantError("a", "broken")
			})
		})
	}
}

// TestAssignedAgainWhileRemoved assigns a task while it is being removed: it
// begins again afterwards, unless it is withdrawn again before that.
func TestAssignedAgainWhileRemoved(t *testing.T) {
	for name, withdrawn := range map[string]bool{"stays": false, "goes": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(m *machine) {
				m.want("a", running)
				m.settle(time.Second)
				release := m.hang("remove")
				m.withdraw("a")
				m.settle(time.Second)
				delete(m.reported, "a")
				m.want("a", running)
				if withdrawn {
					m.withdraw("a")
				}
				m.settle(time.Second)
				release()
				m.settle(time.Minute)
				if withdrawn {
					m.wantNothing("a")
					m.wantStarts("a", 1)
				} else {
					m.wantState("a", running)
					m.wantStarts("a", 2)
				}
			})
		})
	}
}

// TestWithdrawnAgainBeforeItBegins withdraws a task that was assigned again, after it
// was removed and before it has begun again. A message is being taken in meanwhile.
func TestWithdrawnAgainBeforeItBegins(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		release := m.hang("remove")
		m.withdraw("a")
		m.settle(time.Second)
		m.want("a", running)
		m.worker.manager.assigning <- struct{}{}
		go m.withdraw("a")
		m.settle(time.Second)
		release()
		m.settle(time.Second)
		<-m.worker.manager.assigning
		m.settle(time.Minute)
		m.wantNothing("a")
		m.wantStarts("a", 1)
	})
}

// TestFullDiskDelaysOnlyNewTasks has the store refuse writes: what runs can end and
// be stopped, and what is new says why it waits.
func TestFullDiskDelaysOnlyNewTasks(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("old", running)
		m.want("ends", running)
		m.want("ready", ready)
		m.settle(time.Second)
		m.calls = nil
		m.refuse(errors.New("no space left on device"))
		m.want("new", running)
		m.want("ready", running)
		m.want("old", shutdown)
		m.exit("ends", 0)
		m.settle(time.Minute)
		const text = "worker cannot write to its data directory: no space left on device"
		m.wantState("new", musterv1.TaskState_ASSIGNED)
		m.wantError("new", text)
		m.wantState("ready", ready)
		m.wantError("ready", text)
		if n := len(m.history["new"]); n != 1 {
			m.t.Errorf("waiting was reported %d times, want once", n)
		}
		for _, call := range m.calls {
			if strings.HasPrefix(call, "prepare") || strings.HasPrefix(call, "start") {
				m.t.Errorf("%q was called while the store refused writes", call)
			}
		}
		if state := m.held["old"].state.String(); state != "ended" {
			m.t.Errorf("the task that must stop is %s", state)
		}
		m.refuse(nil)
		m.settle(time.Minute)
		for id, want := range map[string]musterv1.TaskState{"new": running, "ready": running, "old": shutdown, "ends": completed} {
			m.wantState(id, want)
			m.wantError(id, "")
		}
	})
}

// TestNothingIsWrittenAfterRun ends the worker while it has calls in flight: Run
// returns after the last write, and the tasks run on.
func TestNothingIsWrittenAfterRun(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Minute)
		m.hang("prepare")
		m.want("b", running)
		m.settle(time.Minute)
		m.worker.stop()
		writes := m.disk.writes
		m.exit("a", 1)
		time.Sleep(time.Hour)
		if m.disk.writes != writes {
			m.t.Errorf("%d writes after the end", m.disk.writes-writes)
		}
		m.start().sync()
		m.settle(time.Minute)
		m.wantState("a", failed)
		m.wantState("b", running)
	})
}

// TestDesiredStateNeverFalls takes no notice of an assignment that desires less,
// and stores what is the most.
func TestDesiredStateNeverFalls(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", shutdown)
		m.settle(time.Second)
		m.wantLabels("a", running, map[string]string{"k": "v"})
		m.settle(time.Minute)
		m.wantState("a", shutdown)
		m.wantStarts("a", 0)
		if got := m.disk.contents.Tasks["a"].Assigned; got.GetDesiredState() != shutdown || got.GetServiceLabels()["k"] != "v" {
			m.t.Errorf("stored: %v", got)
		}
	})
}

// TestRemoveAsDesiredStateOnlyStops has the managers desire REMOVE: the task is
// stopped, and removed when it is withdrawn.
func TestRemoveAsDesiredStateOnlyStops(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.want("a", musterv1.TaskState_REMOVE)
		m.settle(time.Minute)
		m.wantState("a", shutdown)
		if m.held["a"] == nil {
			m.t.Error("the task was removed before it was withdrawn")
		}
		m.withdraw("a")
		m.settle(time.Minute)
		m.wantNothing("a")
	})
}

// TestReadyBlockedTasksAreNotMeasured leaves tasks that were not allowed to start
// at once out of the time that tasks take to run.
func TestReadyBlockedTasksAreNotMeasured(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("blocked", ready)
		m.settle(time.Hour)
		m.want("blocked", running)
		m.want("a", running)
		m.settle(time.Minute)
		m.wantState("blocked", running)
		all, err := m.registry.Gather()
		if err != nil {
			m.t.Fatal(err)
		}
		measured := uint64(0)
		for _, family := range all {
			if family.GetName() == "muster_worker_task_running_seconds" {
				measured += family.GetMetric()[0].GetHistogram().GetSampleCount()
			}
		}
		if measured != 1 {
			m.t.Errorf("%d tasks were measured, want 1", measured)
		}
	})
}

// TestAbandonRemovesAll stops and removes all tasks of a worker that is no longer
// the node.
func TestAbandonRemovesAll(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.want("b", ready)
		m.settle(time.Second)
		if err := m.worker.manager.Abandon(m.t.Context(), "the node was removed"); err != nil {
			m.t.Error(err)
		}
		m.settle(time.Minute)
		m.wantNothing("a")
		m.wantNothing("b")
	})
}

// TestRestoredTasksWaitForSession leaves restored tasks alone until a dispatcher
// has accepted the worker: it may be a copy of another one.
func TestRestoredTasksWaitForSession(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.want("b", ready)
		m.settle(time.Second)
		m.calls = nil
		m.start()
		m.settle(time.Hour)
		m.wantCalls()
		m.worker.sync()
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantStarts("a", 1)
	})
}

func TestLogsOfUnknownTaskAreAWarning(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		for id, want := range map[string]string{"a": "line", "b": "task b is not on node node1"} {
			var got string
			err := m.worker.manager.Logs(m.t.Context(), id, nil, func(l *musterv1.LogMessage) error {
				got += string(l.GetData()) + l.GetWarning()
				return nil
			})
			if err != nil || got != want {
				m.t.Errorf("logs of %s = %q, %v, want %q", id, got, err, want)
			}
		}
	})
}
