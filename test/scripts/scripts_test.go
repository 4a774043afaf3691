// Package scripts_test runs scripts/test with stand-ins for the programs that it calls,
// to see what it does when one of them fails or the user interrupts it.
package scripts_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/wait"
)

// tree is a folder with scripts/test and stand-ins for all that it runs.
type tree struct {
	dir string
}

// newTree makes a folder in which every program succeeds and says its arguments,
// except for those that are given: scripts of the shell, by their path.
func newTree(t *testing.T, programs map[string]string) tree {
	t.Helper()
	dir := t.TempDir()
	script, err := os.ReadFile("../../scripts/test")
	must(t, err)
	files := map[string]string{"scripts/test": string(script)}
	for _, path := range []string{"bin/make", "bin/go", "scripts/test-env", "scripts/gotest", "scripts/slowest"} {
		files[path] = "#!/bin/sh\n" + programs[path] + "\necho ran " + path + ` "$@"` + "\n"
	}
	// The only other module, and the folder of the image builder.
	files["bin/git"] = "#!/bin/sh\necho tools/go.mod\n"
	must(t, os.Mkdir(filepath.Join(dir, "tools"), 0o755))
	for path, content := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, path), []byte(content), 0o755))
	}
	return tree{dir}
}

// run runs scripts/test, and returns what it prints and whether it succeeds.
func (tr tree) run(t *testing.T) (string, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(tr.dir, "scripts/test")).CombinedOutput()
	return string(out), err == nil
}

func TestRunPassesWhenAllStepsPass(t *testing.T) {
	out, passed := newTree(t, nil).run(t)
	if !passed {
		t.Errorf("the run failed:\n%s", out)
	}
	wants(t, out, "ran scripts/test-env", "ran bin/make --no-print-directory lint", "ran scripts/gotest pure ./...", "ran scripts/gotest real ./...",
		"ran scripts/gotest all ./...", "ran scripts/slowest", "ran bin/go test -race ./image")
}

func TestFailedEnvironmentFailsRunWithItsOutput(t *testing.T) {
	out, passed := newTree(t, map[string]string{"scripts/test-env": "echo no engine; exit 3"}).run(t)
	if passed {
		t.Error("the run passed")
	}
	wants(t, out, "no engine", "FAILED: environment")
	if strings.Contains(out, "ran scripts/gotest real") {
		t.Errorf("tests with processes ran without their environment:\n%s", out)
	}
}

func TestFailedStepEndsRun(t *testing.T) {
	out, passed := newTree(t, map[string]string{"bin/make": `[ "$2" != lint ] || exit 1`}).run(t)
	if passed {
		t.Error("the run passed")
	}
	wants(t, out, "FAILED: lint")
	if strings.Contains(out, "ran scripts/gotest") {
		t.Errorf("tests ran after lint had failed:\n%s", out)
	}
}

func TestFailedTestsDoNotHideOtherTests(t *testing.T) {
	out, passed := newTree(t, map[string]string{"scripts/gotest": `[ "$1" != pure ] || exit 1`}).run(t)
	if passed {
		t.Error("the run passed")
	}
	wants(t, out, "ran scripts/gotest real", "FAILED: tests without processes", "ran bin/go test -race ./image")
}

func TestInterruptEndsEnvironment(t *testing.T) {
	tr := newTree(t, map[string]string{
		"scripts/test-env": `sleep 1000 & echo $$ $! >pids.new; mv pids.new pids; wait`,
		"bin/make":         `while [ ! -e pids ]; do sleep 0.01; done; : >builds; exec sleep 1000`,
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(tr.dir, "scripts/test"))
	// A process group, as the terminal sends its interrupts to.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	wait.True(t, "a step runs beside the environment", func() bool {
		_, err := os.Stat(filepath.Join(tr.dir, "builds"))
		return err == nil
	})
	pids, err := os.ReadFile(filepath.Join(tr.dir, "pids"))
	must(t, err)
	must(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGINT))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d after an interrupt, want 130", code)
	}
	for _, field := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(field)
		must(t, err)
		wait.True(t, fmt.Sprintf("process %d of the environment ends", pid), func() bool {
			// One without a parent may stay as a zombie, which has no program.
			_, err := os.Readlink(filepath.Join("/proc", field, "exe"))
			return err != nil
		})
	}
}

func wants(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(out, part) {
			t.Errorf("the output lacks %q:\n%s", part, out)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
