package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/wait"
)

// exitNotConverged is the exit code of a command that stopped waiting.
const exitNotConverged = 6

// stops runs a command that must stop waiting, and checks that it gives these reasons.
func (s *site) stops(t *testing.T, reasons []string, args ...string) {
	t.Helper()
	got := s.muster(t, args...)
	if got.code != exitNotConverged {
		t.Errorf("muster %s: want exit code %d: %s", strings.Join(args, " "), exitNotConverged, got)
	}
	for _, want := range reasons {
		if !strings.Contains(got.errs, want) {
			t.Errorf("muster %s: output lacks %q: %s", strings.Join(args, " "), want, got)
		}
	}
}

// failing is a process that fails twice and then stays, by a file that counts. It is
// restarted after a delay.
func failing(t *testing.T, delay string) []string {
	t.Helper()
	marks := filepath.Join(t.TempDir(), "marks")
	return []string{"--kind", "process", "--restart-delay", delay, "--", "/bin/sh", "-c",
		fmt.Sprintf("echo >>%s; test $(wc -l <%s) -gt 2 || exit 9; exec sleep 1000000", marks, marks)}
}

// TestWaitEndsOnWhatCannotWork runs commands that wait, with real tasks.
func TestWaitEndsOnWhatCannotWork(t *testing.T) {
	t.Parallel()
	need.Answer(t, "docker", "version")
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	create := func(name string, args ...string) []string {
		return append([]string{"service", "create", "--name", name}, args...)
	}
	sleep := []string{"--kind", "process", "--", "sleep", "1000000"}

	s.stops(t, []string{"the task keeps failing\n", "registry.invalid", "still retries", "`muster service ps pull`"},
		create("pull", "--restart-delay", "100ms", "registry.invalid/muster/none:1")...)
	s.stops(t, []string{"all 2 tasks keep failing\n", "/no/such/program"},
		create("program", "--replicas", "2", "--kind", "process", "--restart-delay", "100ms", "--", "/no/such/program")...)
	s.stops(t, []string{"the task has ended", "non-zero exit (3)", "service update --force attempts"},
		create("attempts", "--kind", "process", "--restart-max-attempts", "1", "--restart-delay", "100ms", "--", "/bin/sh", "-c", "exit 3")...)
	s.stops(t, []string{"no node takes the tasks that wait", "Muster starts them as soon as a node fits"},
		create("nowhere", append([]string{"--constraint", "node.hostname==nowhere"}, sleep...)...)...)
	s.ok(t, create("recovers", failing(t, "100ms")...)...)
	s.awaitRunning(t, "recovers", 1)

	// What failed is known before the next command watches.
	s.stops(t, []string{"all 3 tasks keep failing", "/no/such/program"}, "service", "scale", "program=3")
	s.ok(t, "service", "scale", "program=0")
	if got := s.muster(t, "service", "scale", "--keep-waiting", "--timeout", "3s", "attempts=1"); got.code != exitNotConverged || !strings.Contains(got.errs, "after 3s") {
		t.Errorf("with --keep-waiting: %s", got)
	}
}

// TestWaitNamesMissingDaemon runs a cluster over Consul without some of its daemons.
func TestWaitNamesMissingDaemon(t *testing.T) {
	t.Parallel()
	need.Program(t, "consul")
	s := startSite(t, siteConfig{workers: []string{"worker1"}})
	stop := func(daemon string) {
		if err := s.Process(daemon).Stop(); err != nil {
			t.Fatal(err)
		}
	}
	stop("schedulerd")
	s.stops(t, []string{"no scheduler is running: start schedulerd", "muster cluster status"},
		"service", "create", "--name", "first", "--kind", "process", "--", "sleep", "1000000")
	if err := s.StartManager("schedulerd"); err != nil {
		t.Fatal(err)
	}
	s.awaitRunning(t, "first", 1)
	stop("orchestratord")
	s.stops(t, []string{"no orchestrator is running: start orchestratord"}, "service", "scale", "first=2")
	if err := s.StartManager("orchestratord"); err != nil {
		t.Fatal(err)
	}
	s.awaitRunning(t, "first", 2)
	s.ok(t, "service", "rm", "first")
	s.awaitNoTasks(t)
}

// TestWaitSurvivesReconnect restarts apid while a service fails twice and then
// recovers: no failure counts twice.
func TestWaitSurvivesReconnect(t *testing.T) {
	t.Parallel()
	need.Program(t, "consul")
	s := startSite(t, siteConfig{workers: []string{"worker1"}})
	b := s.begin(t, "create", append([]string{"service", "create", "--name", "slow"}, failing(t, "4s")...)...)
	for want := 1; want <= 2; want++ {
		wait.Within(t, runTimeout, "a task fails", func(context.Context) error {
			if n := s.countFailures(t, "slow"); n < want {
				return fmt.Errorf("%d tasks have failed, want %d", n, want)
			}
			return nil
		})
		if err := s.Process("apid").Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.StartManager("apid"); err != nil {
			t.Fatal(err)
		}
	}
	s.awaitRunning(t, "slow", 1)
	code := b.ExitCode()
	out, err := os.ReadFile(b.Log)
	if code != 0 || err != nil || !strings.Contains(string(out), "slow: 1/1 running: converged") {
		t.Errorf("create ended with code %d, %v:\n%s", code, err, out)
	}
	s.ok(t, "service", "rm", "slow")
	s.awaitNoTasks(t)
}

// countFailures counts a service's tasks that have failed, none while apid is away.
func (s *site) countFailures(t *testing.T, service string) int {
	t.Helper()
	all, err := s.listTasks(t.Context(), service)
	if err != nil {
		return 0
	}
	n := 0
	for _, task := range all {
		if task.Status.GetState() == musterv1.TaskState_FAILED {
			n++
		}
	}
	return n
}
