package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/musterhq/muster/internal/testwait"
)

// TestTasksEndWithDevInMemory: a cluster that is kept in memory leaves no process
// behind, however it ends.
func TestTasksEndWithDevInMemory(t *testing.T) {
	for name, end := range map[string]syscall.Signal{"terminal closed": syscall.SIGHUP, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			// Its path is short, for sockets lie in it.
			temporary, err := os.MkdirTemp("/tmp", "dev-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(temporary) })
			t.Setenv("TMPDIR", temporary)
			s := startSite(t, siteConfig{embedded: true, devWorkers: 2})
			s.ok(t, "service", "create", "--name", "sleeper", "--replicas", "4", "--kind", "process", "--timeout", "2m", "--", "sleep", "1000000")
			s.awaitRunning(t, "sleeper", 4)
			dev := s.Process("dev")
			if err := dev.Signal(end); err != nil {
				t.Fatal(err)
			}
			testwait.Within(t, runTimeout, "nothing is left", func(context.Context) error {
				if !dev.Ended() {
					return fmt.Errorf("muster dev runs on after %v", end)
				}
				left, err := s.processes()
				if err != nil {
					return err
				}
				if len(left) > 0 {
					return fmt.Errorf("%d processes are left, such as %v", len(left), left[0])
				}
				return nil
			})
			kept, err := filepath.Glob(filepath.Join(temporary, "muster-dev-*"))
			if err != nil || len(kept) > 0 {
				t.Errorf("directories that are left: %v, %v", kept, err)
			}
		})
	}
}
