package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestEmptyConsul takes all that Consul holds from a cluster that runs on, and has no
// ACLs that would have it wait. No daemon takes that for the removal of all services:
// tasks run until the snapshot is restored, and are the same then. Only a worker that
// is restarted meanwhile believes it.
func TestEmptyConsul(t *testing.T) {
	t.Parallel()
	r := start(t, cluster.Config{Replicas: 2, ConsulServers: 3}, "one", "two")
	_, err := r.Create(t.Context(), rig.Processes("steady", 4, rig.Sleep))
	ok(t, err)
	steady := running(t, r, "steady", 4)
	var snapshot bytes.Buffer
	ok(t, r.Consul.Save(t.Context(), &snapshot))

	ok(t, r.Servers.Replace())
	refused := func(name string) func(context.Context) error {
		return func(context.Context) error {
			log, err := os.ReadFile(r.Process(name).Log)
			if err == nil && !strings.Contains(string(log), "the store knows neither node") {
				err = fmt.Errorf("worker %s has not been told that the store is empty", name)
			}
			return err
		}
	}
	wait.Within(t, 3*waitTimeout, "the workers are sent away", func(ctx context.Context) error {
		return errors.Join(refused("one")(ctx), refused("two")(ctx))
	})
	for _, task := range steady {
		if !rig.Alive(int(task.Status.Runtime.Pid)) {
			t.Errorf("task %s was stopped", task.Name)
		}
	}

	ok(t, r.Process("two").Stop())
	ok(t, r.StartNode("two"))
	wait.Within(t, waitTimeout, "a worker that was restarted gives its tasks up", func(context.Context) error {
		for _, task := range steady {
			if alive, want := rig.Alive(int(task.Status.Runtime.Pid)), task.NodeId == r.Nodes["one"]; alive != want {
				return fmt.Errorf("task %s on %s lives: %t", task.Name, task.NodeId, alive)
			}
		}
		return nil
	})

	restoreConsul(t, r, snapshot.Bytes())
	restored(t, r)
	kept := running(t, r, "steady", 4)
	for id, task := range steady {
		if task.NodeId == r.Nodes["one"] && kept[id] == nil {
			t.Errorf("task %s was replaced", task.Name)
		}
	}
	removeAll(t, r)
}
