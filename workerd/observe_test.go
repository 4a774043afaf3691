package workerd_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// blocked is an executor whose Start takes until it is told to return.
type blocked struct {
	*able
	release chan struct{}
}

func (b *blocked) Start(ctx context.Context, task *sdk.Task, handle sdk.Handle) (*sdk.Started, error) {
	select {
	case <-b.release:
		return b.able.Start(ctx, task, handle)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// checked is a blocked executor that reports what its tasks' health checks say.
type checked struct {
	*blocked
	observations chan sdk.Observation
}

var _ sdk.Observer = (*checked)(nil)

func (c *checked) Observe(ctx context.Context, _ sdk.Ref, emit func(sdk.Observation) error) error {
	for {
		select {
		case o := <-c.observations:
			if err := emit(o); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failing is what is observed of a starting task whose health check has failed.
func failing(checks uint32) sdk.Observation {
	return sdk.Observation{
		Status: &sdk.Status{Id: "c1", Health: &sdk.Health{
			State: sdk.HealthStarting, FailedChecks: checks, Retries: 3, ExitCode: 1, Output: "connection refused",
		}},
		Message: "waiting for the health check",
		Error:   fmt.Sprintf("%d of 3 health checks failed: exit code 1: connection refused", checks),
	}
}

// startOn starts a worker with one executor, and a task on it.
func startOn(t *testing.T, e sdk.Executor) *session {
	t.Helper()
	n := newNetwork()
	d, _ := n.serve(t, "d1:1")
	set, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(e)))
	if err != nil {
		t.Fatal(err)
	}
	start(t, n, set, nil)
	s := d.await(t)
	s.welcome()
	s.assign(true, []assignment{nullTask("a", running, nil)})
	settle(time.Second)
	return s
}

func newBlocked(t *testing.T) *blocked {
	t.Helper()
	_, a := ableSet(t)
	return &blocked{able: a, release: make(chan struct{})}
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	return &checked{blocked: newBlocked(t), observations: make(chan sdk.Observation)}
}

func TestStartingTaskReportsFailedHealthChecks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newChecked(t)
		s := startOn(t, e)
		for checks := uint32(1); checks <= 2; checks++ {
			e.observations <- failing(checks)
			settle(10 * time.Second)
			want := failing(checks)
			got := s.state("a")
			if got.GetState() != TaskState_STARTING || got.GetMessage() != want.Message || got.GetError() != want.Error {
				t.Errorf("after %d failed checks: %v, want it starting with message %q and error %q", checks, got, want.Message, want.Error)
			}
			if health := got.GetRuntime().GetHealth(); health.GetState() != sdk.HealthStarting || health.GetFailedChecks() != checks {
				t.Errorf("after %d failed checks: health = %v", checks, health)
			}
		}
		// However long it takes: an executor that says what it waits for has answered.
		settle(time.Hour)
		if got := s.state("a"); got.GetError() != failing(2).Error {
			t.Errorf("after an hour: error = %q", got.GetError())
		}
		close(e.release)
		settle(time.Second)
		if got := s.state("a"); got.GetState() != running || got.GetError() != "" || got.GetMessage() != "started" {
			t.Errorf("once it is healthy: %v, want it running without an error", got)
		}
	})
}

func TestStartingTaskRecoversFromFailedHealthChecks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newChecked(t)
		s := startOn(t, e)
		e.observations <- failing(2)
		settle(5 * time.Second)
		well := failing(0)
		well.Error, well.Status.Health.Output, well.Status.Health.ExitCode = "", "", 0
		e.observations <- well
		settle(5 * time.Second)
		if got := s.state("a"); got.GetState() != TaskState_STARTING || got.GetError() != "" || got.GetMessage() != well.Message {
			t.Errorf("after a check that succeeded: %v, want it starting without an error", got)
		}
	})
}

func TestRunningTaskReportsHealth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newChecked(t)
		close(e.release)
		s := startOn(t, e)
		s.wantStates(map[string]TaskState{"a": running})
		before := len(s.all("a"))
		// Of many changes that come fast the newest counts, and few are reported.
		const changes = 100
		for i := range uint32(changes) {
			o := failing(i)
			o.Status.Health.State = sdk.HealthHealthy
			e.observations <- o
			time.Sleep(100 * time.Millisecond)
		}
		settle(10 * time.Second)
		got := s.state("a")
		if got.GetState() != running || got.GetError() != "" || got.GetRuntime().GetHealth().GetFailedChecks() != changes-1 {
			t.Errorf("after failed checks: %v, want it running, without an error, with %d failed checks", got, changes-1)
		}
		if reports := len(s.all("a")) - before; reports < 2 || reports > 8 {
			t.Errorf("%d changes within ten seconds were reported %d times, want 2 to 8", changes, reports)
		}
	})
}

func TestSilentExecutorIsNamedAsSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, e := range map[string]sdk.Executor{"no observations": newChecked(t), "no capability": newBlocked(t)} {
			s := startOn(t, e)
			settle(15 * time.Second)
			if got := s.state("a"); got.GetState() != TaskState_STARTING || !strings.Contains(got.GetError(), "has not answered to start within 10s") {
				t.Errorf("%s: after 15 s: %v, want an error that names the executor", name, got)
			}
		}
	})
}
