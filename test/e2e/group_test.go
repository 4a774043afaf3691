package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestGroupOfTheExamplesRuns deploys the group of the examples, ends its sidecar, and removes
// it: its containers are shown, the sidecar is started again, and the post-stop container has
// run.
func TestGroupOfTheExamplesRuns(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	dir := t.TempDir()
	shared, file := filepath.Join(dir, "shared"), filepath.Join(dir, "service.yaml")
	example, err := os.ReadFile("../../examples/group/service.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const path = "/tmp/muster-group-example"
	if !strings.Contains(string(example), path) {
		t.Fatalf("the example does not use %s", path)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(example), path, shared)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "service", "create", "--file", file)
	s.awaitPS(t, "group", "Running", "main running, prepare complete, helper running, cleanup ready")
	wait.Within(t, runTimeout, "the sidecar's lines are shown alone", func(context.Context) error {
		all, alone := s.ok(t, "logs", "group"), s.ok(t, "logs", "--container", "helper", "group")
		for _, want := range []string{"/prepare@", "| prepared", "/main@", "| main works", "/helper@", "| helper works"} {
			if !strings.Contains(all, want) {
				return fmt.Errorf("logs lack %q:\n%s", want, all)
			}
		}
		if !strings.Contains(alone, "/helper@") || strings.Contains(alone, "/main@") {
			return fmt.Errorf("lines of the sidecar:\n%s", alone)
		}
		return nil
	})
	helper := func(ctx context.Context) *musterv1.ContainerStatus {
		tasks, err := s.listTasks(ctx, "group")
		if err != nil || len(tasks) != 1 {
			t.Fatalf("tasks: %v, %v; want one", tasks, err)
		}
		return tasks[0].Status.Containers[2]
	}
	before := helper(t.Context())
	if err := syscall.Kill(int(before.Runtime.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait.Within(t, runTimeout, "the sidecar runs again", func(ctx context.Context) error {
		now := helper(ctx)
		if now.State != musterv1.TaskState_RUNNING || now.Restarts != 1 || now.Runtime.GetPid() == before.Runtime.GetPid() {
			return fmt.Errorf("it is %v", now)
		}
		return nil
	})
	id := strings.TrimSpace(s.ok(t, "service", "ps", "--quiet", "group"))
	if inspect := s.ok(t, "task", "inspect", id); !strings.Contains(inspect, "helper") || !strings.Contains(inspect, "sidecar") {
		t.Errorf("task inspect shows no containers:\n%s", inspect)
	}
	s.removeService(t, "group")
	s.awaitNoTasks(t)
	if _, err := os.Stat(shared); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the post-stop container did not run: %v", err)
	}
}

func TestFailedInitContainerIsNamed(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	file := filepath.Join(t.TempDir(), "service.yaml")
	spec := `{name: broken, task: {restart: {condition: NONE}, generic: {kind: process, payload: {shell: "sleep 600"}},
  group: [{name: check, role: INIT, generic: {kind: process, payload: {shell: "exit 7"}}}]}}`
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "service", "create", "--detach", "--file", file)
	s.awaitPS(t, "broken", "Failed", `init container "check": non-zero exit (7)`)
	s.removeService(t, "broken")
	s.awaitNoTasks(t)
}
