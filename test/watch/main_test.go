// Package watch_test looks at what an operator sees of a cluster of real
// processes: metrics, traces, and the way of a task; and that the documentation
// tells of it.
package watch_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// built is the directory with the programs. TestMain sets it before any test runs.
var built string

func TestMain(m *testing.M) { os.Exit(rig.Tests(m, "watch", &built)) }

// watched is a cluster of processes over Consul, with one worker.
type watched struct {
	*rig.Rig
	// workerOps is where the worker serves its operations.
	workerOps string
}

// start starts a cluster whose daemons all get some flags, and that ends with the
// test.
func start(t *testing.T, flags ...string) *watched {
	t.Helper()
	need.Program(t, "consul")
	args := map[string][]string{}
	for _, name := range cluster.Managers() {
		args[name] = flags
	}
	r := rig.StartFor(t, rig.Config{Config: cluster.Config{Args: args}, Built: built, NodeIDs: map[string]string{}})
	free, err := network.FreeAddresses(network.Loopback(), 1)
	ok(t, err)
	w := &watched{Rig: r, workerOps: free[0]}
	r.Nodes["alpha"] = "node-alpha"
	_, err = r.StartWorker("alpha", append([]string{"--node-id", "node-alpha", "--ops-listen", w.workerOps}, flags...)...)
	ok(t, err)
	wait.Within(t, waitTimeout, "the node is ready", r.Ready)
	return w
}

// deploy creates a service and waits until all its tasks run.
func (w *watched) deploy(t *testing.T, spec *musterv1.ServiceSpec) (id string, tasks []*musterv1.Task) {
	t.Helper()
	id, err := w.Create(t.Context(), spec)
	ok(t, err)
	wait.Within(t, waitTimeout, "all tasks run", func(ctx context.Context) error {
		if tasks, err = w.Tasks(ctx, id); err != nil {
			return err
		}
		running := 0
		for _, task := range tasks {
			if task.Status.State == musterv1.TaskState_RUNNING {
				running++
			}
		}
		if want := int(spec.GetReplicated().GetReplicas()); running != want {
			return fmt.Errorf("%d of %d tasks run", running, want)
		}
		return nil
	})
	return id, tasks
}

// waitTimeout bounds what should take moments, on a machine that is busy.
const waitTimeout = 2 * time.Minute

// ok fails the test at an error.
func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
