package faults_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestSnapshot restores a live cluster to what it was some changes ago. What the
// snapshot says is so again: services that were made since are forgotten and
// their tasks stopped, services that were removed since run again, and tasks that
// were there then and are now do not notice.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	r := start(t, cluster.Config{Replicas: 2, ConsulServers: 3}, "one", "two")
	create := func(name string, replicas int) map[string]*musterv1.Task {
		_, err := r.Create(t.Context(), rig.Processes(name, uint64(replicas), rig.Sleep))
		ok(t, err)
		return running(t, r, name, replicas)
	}
	steady := create("steady", 4)
	grown := create("grown", 1)
	create("gone", 2)
	shrunk := create("shrunk", 3)

	var snapshot bytes.Buffer
	ok(t, r.Consul.Save(t.Context(), &snapshot))

	ok(t, r.Scale(t.Context(), "grown", 3))
	running(t, r, "grown", 3)
	ok(t, r.Scale(t.Context(), "shrunk", 1))
	running(t, r, "shrunk", 1)
	ok(t, r.Remove(t.Context(), "gone"))
	later := create("later", 2)

	ok(t, r.Consul.Restore(t.Context(), snapshot.Bytes()))
	wait.Within(t, waitTimeout, "the cluster is what the snapshot says", func(ctx context.Context) error {
		all, err := r.Services(ctx)
		if err != nil {
			return err
		}
		if len(all) != 4 {
			return fmt.Errorf("there are %d services, want 4", len(all))
		}
		for name, n := range map[string]int{"steady": 4, "grown": 1, "gone": 2, "shrunk": 3} {
			if _, err := r.Running(ctx, name, n); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	wait.Within(t, waitTimeout, "what runs on the machine is what should", r.Truthful)
	for _, task := range later {
		if rig.Alive(int(task.Status.Runtime.Pid)) {
			t.Errorf("task %s runs, of a service that there is not", task.Name)
		}
	}
	ok(t, rig.Same(steady, running(t, r, "steady", 4)))
	ok(t, rig.Same(grown, running(t, r, "grown", 1)))
	for id := range running(t, r, "shrunk", 3) {
		delete(shrunk, id)
	}
	t.Logf("%d of 3 tasks that were stopped since the snapshot have new names", len(shrunk))

	ok(t, r.Scale(t.Context(), "grown", 2))
	running(t, r, "grown", 2)
	removeAll(t, r)
}

// running waits until a service has converged.
func running(t *testing.T, r *rig.Rig, service string, n int) (tasks map[string]*musterv1.Task) {
	t.Helper()
	wait.Within(t, waitTimeout, fmt.Sprintf("%s runs %d tasks", service, n), func(ctx context.Context) (err error) {
		tasks, err = r.Running(ctx, service, n)
		return err
	})
	return tasks
}
