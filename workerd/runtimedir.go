package workerd

import (
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/files"
)

// DefaultRuntimeDir returns a directory for the secrets and configs of tasks that is on a
// tmpfs on most machines.
func DefaultRuntimeDir() string {
	if os.Geteuid() == 0 {
		return "/run/muster"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "muster")
	}
	return fmt.Sprintf("/dev/shm/muster-%d", os.Geteuid())
}

// openFiles returns the store of the tasks' files, or nil if there cannot be one.
func (w *Worker) openFiles(node string, log *zap.Logger) *files.Store {
	if w.cfg.RuntimeDir == "" {
		return nil
	}
	store, err := files.Open(w.cfg.RuntimeDir, node)
	if err != nil {
		log.Warn("failed to open the runtime directory; tasks with secrets or configs cannot run here", zap.Error(err))
		return nil
	}
	return store
}

// withoutFiles removes what a node without a runtime directory does not offer.
func withoutFiles(d *musterv1.ExecutorDescription) {
	var left []string
	for _, c := range d.Capabilities {
		if c != executor.GivesFiles {
			left = append(left, c)
		}
	}
	d.Capabilities = left
}
