package workerd_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// containers is an executor for containers that keeps the spec of the last task.
type containers struct {
	*able
	prepared atomic.Pointer[TaskSpec]
}

func (c *containers) Describe(ctx context.Context) (*sdk.Description, error) {
	said, err := c.able.Describe(ctx)
	if err == nil {
		said.Kinds = []string{"container"}
	}
	return said, err
}

func (c *containers) Prepare(ctx context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	c.prepared.Store(task.GetSpec())
	return c.able.Prepare(ctx, task, handle)
}

func TestExecutorsGetSpecsWithDefaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		_, a := ableSet(t)
		c := &containers{able: a}
		set, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(c)))
		if err != nil {
			t.Fatal(err)
		}
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		// As apid stores it: it leaves open what the user left open.
		s.assign(true, []assignment{{
			AssignedTask: &dispatcherv1.AssignedTask{Id: "a", ServiceId: "svc", Slot: 1, SpecDigest: []byte("d"), DesiredState: running},
			spec:         &TaskSpec{Runtime: &TaskSpec_Container{Container: &ContainerSpec{Image: "i"}}},
		}})
		settle(time.Second)
		got := c.prepared.Load().GetContainer()
		if got.GetStopGracePeriod().AsDuration() != defaults.StopGracePeriod || got.GetPullOptions().GetPolicy() != PullOptions_ALWAYS {
			t.Errorf("the executor got %v, want the default grace period and pull policy in it", got)
		}
	})
}

func TestGracePeriodsOfContractAndSpecsAreTheSame(t *testing.T) {
	t.Parallel()
	if sdk.DefaultGracePeriod != defaults.StopGracePeriod {
		t.Errorf("executors give %v to payloads that name no grace period, and specs %v", sdk.DefaultGracePeriod, defaults.StopGracePeriod)
	}
}
