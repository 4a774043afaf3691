package tasks

import (
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// TestObservationOfEndedCallIsIgnored has the executor report what it waits for,
// and the task told to stop: the message of the call goes with the call.
func TestObservationOfEndedCallIsIgnored(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.capabilities = append(m.capabilities, "observe")
		m.start().sync()
		m.settle(time.Second)
		m.fail("start", 1, temporary("engine is away"))
		m.hang("start")
		m.want("a", running)
		m.settle(2 * time.Second)
		m.observations <- &executor.Observation{Message: "waiting for the health check", Error: "1 of 3 checks failed"}
		m.settle(time.Hour)
		if got := m.reported["a"].GetStatus(); got.GetMessage() != "waiting for the health check" || got.GetError() != "1 of 3 checks failed" {
			m.t.Errorf("while the task starts: %v", got)
		}
		m.want("a", shutdown)
		m.settle(time.Hour)
		m.wantState("a", shutdown)
		if got := m.reported["a"].GetStatus(); got.GetMessage() != "shutdown" || got.GetError() != "" {
			m.t.Errorf("after the call: %v", got)
		}
	})
}

// observing runs a test with a task that runs and was observed to be healthy.
func observing(t *testing.T, test func(m *machine)) {
	inBubble(t, func(m *machine) {
		m.capabilities = append(m.capabilities, "observe")
		m.start().sync()
		m.want("a", running)
		m.settle(time.Second)
		m.observations <- healthy()
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantHealth(musterv1.Health_HEALTHY)
		test(m)
	})
}

func healthy() *executor.Observation {
	return &executor.Observation{Runtime: &musterv1.RuntimeStatus{Pid: 7, Health: &musterv1.Health{State: musterv1.Health_HEALTHY}}}
}

// wantHealth fails the test unless the health of task a was reported last as this.
func (m *machine) wantHealth(want musterv1.Health_State) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.reported["a"].GetStatus().GetRuntime().GetHealth().GetState(); got != want {
		m.t.Errorf("health = %s, want %s", got, want)
	}
}

// TestHealthIsUnknownOnceItIsNotObserved ends the stream of observations while the
// task runs.
func TestHealthIsUnknownOnceItIsNotObserved(t *testing.T) {
	for name, err := range map[string]error{"ends": nil, "is refused": fatal("cannot observe")} {
		t.Run(name, func(t *testing.T) {
			observing(t, func(m *machine) {
				if err != nil {
					m.fail("observe", 1, err)
				}
				m.observations <- nil
				m.settle(time.Minute)
				m.wantState("a", running)
				m.wantHealth(musterv1.Health_STATE_UNSPECIFIED)
				if pid := m.reported["a"].GetStatus().GetRuntime().GetPid(); pid != 7 {
					m.t.Errorf("pid = %d, want 7", pid)
				}
			})
		})
	}
}

// TestObservationContinuesAfterTemporaryErrors has the stream of observations break
// several times.
func TestObservationContinuesAfterTemporaryErrors(t *testing.T) {
	observing(t, func(m *machine) {
		m.fail("observe", 3, temporary("engine is away"))
		for range 3 {
			m.observations <- nil
			m.settle(30 * time.Second)
			m.wantHealth(musterv1.Health_STATE_UNSPECIFIED)
		}
		m.observations <- healthy()
		m.settle(time.Minute)
		m.wantHealth(musterv1.Health_HEALTHY)
	})
}

// TestHealthIsUnknownWhileExecutorIsAway has an executor that is started again, first
// fail, and then no longer observe tasks.
func TestHealthIsUnknownWhileExecutorIsAway(t *testing.T) {
	observing(t, func(m *machine) {
		m.fail("wait", 20, temporary("plugin ended"))
		m.wantLabels("a", running, map[string]string{"k": "v"})
		m.settle(5 * time.Second)
		m.wantError("a", "plugin ended")
		m.wantHealth(musterv1.Health_STATE_UNSPECIFIED)
		m.settle(time.Minute)
		m.observations <- healthy()
		m.settle(time.Minute)
		m.wantHealth(musterv1.Health_HEALTHY)
		m.wantError("a", "")

		m.capabilities = []string{"update"}
		m.start().sync()
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantHealth(musterv1.Health_STATE_UNSPECIFIED)
	})
}

// TestEndedTaskKeepsNoStateOfRunningOne has the executor not tell how a task ended.
func TestEndedTaskKeepsNoStateOfRunningOne(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(m *machine)
		want musterv1.TaskState
	}{
		"shutdown": {func(m *machine) { m.want("a", shutdown) }, shutdown},
		"exit":     {func(m *machine) { m.exit("a", 0) }, completed},
		"failure": {func(m *machine) {
			m.fail("wait", 1, fatal("no such task"))
			m.wantLabels("a", running, map[string]string{"k": "v"})
		}, failed},
	} {
		t.Run(name, func(t *testing.T) {
			observing(t, func(m *machine) {
				m.mute = true
				test.end(m)
				m.settle(time.Minute)
				m.wantState("a", test.want)
				if r := m.reported["a"].GetStatus().GetRuntime(); r.GetPid() != 0 || r.GetHealth() != nil {
					m.t.Errorf("runtime = %v, want no process id and no health", r)
				}
			})
		})
	}
}
