package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/wait"
)

// The main process of the containers of these tests.
const untilStopped = `trap "exit 0" TERM; while :; do sleep 0.1; done`

// TestHealthChecksAreShown: while a container waits for its health check, and
// while it runs, the command line, events and REST show the health check's state
// and why it fails.
func TestHealthChecksAreShown(t *testing.T) {
	t.Parallel()
	need.Answer(t, "docker", "version")
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	s.makeImage(t)
	events := s.begin(t, "events", "events")

	// It fails until there is a file /ready.
	s.ok(t, "service", "create", "--name", "late", "--detach", "--pull-policy", "never",
		"--health-cmd", "echo connection refused; test -e /ready", "--health-interval", "500ms", "--health-retries", "10000",
		s.image, "/bin/sh", "-c", untilStopped)
	s.awaitPS(t, "late", "Starting", "(health: starting)", " of 10000 health checks failed: exit code 1: connection refused")
	id := strings.TrimSpace(s.ok(t, "service", "ps", "--quiet", "late"))
	inspect := s.ok(t, "task", "inspect", id)
	for _, want := range []string{
		`Message: +waiting for the health check\n`,
		`Health: +starting, [0-9]+ of 10000 checks failed\n`,
		`Check: +exit code 1: connection refused\n`,
	} {
		if !regexp.MustCompile(want).MatchString(inspect) {
			t.Errorf("task inspect lacks %q:\n%s", want, inspect)
		}
	}
	code, body := s.rest(t, "GET", "/v1/tasks/"+id, nil)
	health := dig(body, "status", "runtime", "health")
	if code != 200 || health["state"] != "STARTING" || health["output"] != "connection refused" || health["exitCode"] != float64(1) {
		t.Errorf("REST: %d, health = %v in %v", code, health, body)
	}
	wait.Within(t, runTimeout, "events say why the task is starting", func(context.Context) error {
		lines, err := events.lines()
		if err != nil {
			return err
		}
		all := strings.Join(lines, "\n")
		if strings.Contains(all, "has not answered") {
			t.Fatalf("events say that the executor does not answer:\n%s", all)
		}
		if !strings.Contains(all, "late.1 starting (health: starting) (desired running): ") || !strings.Contains(all, "exit code 1: connection refused") {
			return fmt.Errorf("events:\n%s", all)
		}
		return nil
	})
	s.inContainer(t, "late", "touch", "/ready")
	s.awaitRunning(t, "late", 1)
	s.awaitPS(t, "late", "Running", "(healthy)")

	// It succeeds until there is a file /sick.
	s.ok(t, "service", "create", "--name", "frail", "--pull-policy", "never", "--restart-condition", "none",
		"--health-cmd", `if test -e /sick; then printf 'out of \033[31mcheese'; exit 7; fi`, "--health-interval", "500ms", "--health-retries", "2",
		s.image, "/bin/sh", "-c", untilStopped)
	s.awaitPS(t, "frail", "Running", "(healthy)")
	s.inContainer(t, "frail", "touch", "/sick")
	s.awaitPS(t, "frail", "Failed", "(unhealthy)", "task: unhealthy: its health check ended with exit code 7: out of [31mcheese")

	for _, service := range []string{"late", "frail"} {
		s.removeService(t, service)
	}
	s.awaitNoTasks(t)
}

// inContainer runs an applet of busybox in the container of a service's running
// task.
func (s *site) inContainer(t *testing.T, service string, args ...string) {
	t.Helper()
	all, err := s.listTasks(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range all {
		if task.Status.GetState() == musterv1.TaskState_STARTING || task.Status.GetState() == musterv1.TaskState_RUNNING {
			if _, err := process.Docker(t.Context(), nil, append([]string{"exec", task.Status.GetRuntime().GetId(), "/bin/busybox"}, args...)...); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no task of %s runs: %v", service, all)
}

// dig returns the object that lies at a path in another.
func dig(object map[string]any, path ...string) map[string]any {
	for _, name := range path {
		object, _ = object[name].(map[string]any)
	}
	return object
}
