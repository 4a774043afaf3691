package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// restarts is a cluster with one replica of each manager: what is done after one
// was started again is done by that one.
type restarts struct {
	*site
	// steady are the tasks that must not notice anything.
	steady tasks
	// ports is how many ports have been asked for so far.
	ports int
}

// TestManagersRestart kills each manager and starts it again. Tasks do not notice;
// what is asked for while it is away is done when it is back. (Managers that end in
// order are those of TestTakeOver and TestUpgrade.)
func TestManagersRestart(t *testing.T) {
	t.Parallel()
	need.Program(t, "consul")
	const size = 4
	r := &restarts{site: startSite(t, siteConfig{workers: []string{"alpha", "beta"}})}
	r.ok(t, "service", "create", "--name", "steady", "--replicas", fmt.Sprint(size), "--kind", "process", "--env", "COLOR=blue",
		"--timeout", "2m", "--", "/bin/sh", "-c", tick)
	r.ok(t, "service", "create", "--name", "elastic", "--kind", "process", "--timeout", "2m", "--", "sleep", "1000000")
	r.ok(t, "service", "create", "--name", "outlet", "--replicas", "0", "--kind", "null", "--timeout", "2m")
	r.steady = r.awaitRunning(t, "steady", size)

	for _, daemon := range cluster.Managers() {
		done := t.Run(daemon, func(t *testing.T) {
			if err := r.Process(daemon).Kill(); err != nil {
				t.Fatal(err)
			}
			r.back(t, daemon)
		})
		if !done {
			return
		}
	}

	for id, task := range r.steady {
		r.uninterrupted(t, task.Name, r.ok(t, "task", "logs", "--raw", id))
	}
	for _, service := range []string{"steady", "elastic", "outlet"} {
		r.removeService(t, service)
	}
	r.awaitNoTasks(t)
}

// back starts a manager that has ended, and checks that it does its work, and
// that the steady tasks are as they were.
func (r *restarts) back(t *testing.T, daemon string) {
	if daemon == "apid" {
		// No client can ask for anything meanwhile.
		r.start(t, daemon)
		wait.Within(t, runTimeout, "apid answers", func(context.Context) error {
			if got := r.muster(t, "service", "ls"); got.code != 0 {
				return fmt.Errorf("service ls: %s", got)
			}
			return nil
		})
		r.ask(t)
	} else {
		r.ask(t)
		r.start(t, daemon)
	}
	r.awaitRunning(t, "elastic", 3)
	r.awaitPorts(t)
	r.ok(t, "service", "scale", "elastic=1", "--timeout", "2m")
	r.awaitRunning(t, "elastic", 1)
	r.ok(t, "cluster", "status", "--wait", "2m")

	r.sameRuns(t, r.steady, r.awaitRunning(t, "steady", len(r.steady)))
	// Past tasks count, too: none was ever replaced.
	all, err := r.listTasks(t.Context(), "steady")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(r.steady) {
		t.Errorf("there are %d tasks of steady, past ones among them, want %d", len(all), len(r.steady))
	}
}

func (r *restarts) start(t *testing.T, daemon string) {
	t.Helper()
	for _, task := range r.steady {
		if pid := int(task.Status.Runtime.GetPid()); !rig.Alive(pid) {
			t.Errorf("while %s was away, process %d of task %s ended", daemon, pid, task.Name)
		}
	}
	if err := r.StartManager(daemon); err != nil {
		t.Fatal(err)
	}
}

// ask asks for work for every manager, and waits for none of it.
func (r *restarts) ask(t *testing.T) {
	t.Helper()
	r.ports++
	r.ok(t, "service", "scale", "--detach", "elastic=3")
	r.ok(t, "service", "update", "--detach", "--publish-add", fmt.Sprintf("target=%d,mode=host", r.ports), "outlet")
}

// awaitPorts waits until all ports that were asked for are allocated.
func (r *restarts) awaitPorts(t *testing.T) {
	t.Helper()
	wait.Within(t, runTimeout, fmt.Sprintf("%d ports are allocated", r.ports), func(ctx context.Context) error {
		resp, err := r.client.GetService(ctx, &musterv1.GetServiceRequest{Service: "outlet"})
		if err == nil && len(resp.Service.GetEndpoint().GetPorts()) != r.ports {
			err = fmt.Errorf("the endpoint is %v", resp.Service.GetEndpoint())
		}
		return err
	})
}

// uninterrupted checks that a task's log counts from 1 on without a gap.
func (r *restarts) uninterrupted(t *testing.T, name, log string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(log) {
		n++
		if want := fmt.Sprintf("tick %d in blue\n", n); line != want {
			t.Errorf("line %d of task %s is %q, want %q", n, name, line, want)
			return
		}
	}
	if n == 0 {
		t.Errorf("task %s has no log", name)
	}
}
