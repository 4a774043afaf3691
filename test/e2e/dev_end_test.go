package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/musterhq/muster/test/kit/wait"
)

// TestTasksEndWithDevInMemory: a cluster in memory leaves no process and no
// directory behind when its terminal is closed or when it is killed.
func TestTasksEndWithDevInMemory(t *testing.T) {
	// nohup starts programs with SIGHUP ignored, and their children inherit that.
	// Signals with a handler are reset in children, so that this test has the same
	// result under nohup.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangups) })
	for name, end := range map[string]syscall.Signal{"terminal closed": syscall.SIGHUP, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			s, temporary := startDevInMemory(t)
			s.ok(t, "service", "create", "--name", "sleeper", "--replicas", "4", "--kind", "process", "--timeout", "2m", "--", "sleep", "1000000")
			s.awaitRunning(t, "sleeper", 4)
			dev := s.Process("dev")
			if err := dev.Signal(end); err != nil {
				t.Fatal(err)
			}
			wait.Within(t, runTimeout, "every process ends", func(context.Context) error {
				if !dev.Ended() {
					return fmt.Errorf("muster dev still runs after %v", end)
				}
				left, err := s.processes()
				if err != nil {
					return err
				}
				if len(left) > 0 {
					return fmt.Errorf("%d processes still run, such as %v", len(left), left[0])
				}
				return nil
			})
			kept, err := filepath.Glob(filepath.Join(temporary, "muster-dev-*"))
			if err != nil || len(kept) > 0 {
				t.Errorf("directories left behind: %v, %v", kept, err)
			}
		})
	}
}

// TestDevUnderNohupOutlivesTerminal: SIGHUP does not end a cluster that was started
// with SIGHUP ignored.
func TestDevUnderNohupOutlivesTerminal(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	s, _ := startDevInMemory(t)
	dev := s.Process("dev")
	if err := dev.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "service", "create", "--name", "later", "--kind", "null", "--timeout", "2m", "--payload", "{}")
	s.awaitRunning(t, "later", 1)
	if dev.Ended() {
		t.Error("muster dev ended on SIGHUP")
	}
}

// startDevInMemory starts muster dev with two workers, and returns the directory in
// which it keeps temporary files.
func startDevInMemory(t *testing.T) (*site, string) {
	t.Helper()
	// The path is short because sockets have to fit in it.
	temporary, err := os.MkdirTemp("/tmp", "dev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temporary) })
	t.Setenv("TMPDIR", temporary)
	return startSite(t, siteConfig{embedded: true, devWorkers: 2}), temporary
}
