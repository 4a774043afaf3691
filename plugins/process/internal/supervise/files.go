//go:build linux

package supervise

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/process/internal/taskdir"
)

// mountFiles makes the children of this thread, whose mounts no other process sees, see the
// worker's files.
func mountFiles(mounts []taskdir.Mount) error {
	for _, m := range mounts {
		if m.Dir {
			if err := os.MkdirAll(m.Target, 0o755); err != nil {
				return fmt.Errorf("make a directory for the task's files: %w", err)
			}
		}
		if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the task's files at %s: %w", m.Target, err)
		}
		const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
		if err := unix.Mount("", m.Target, "", flags, ""); err != nil {
			return fmt.Errorf("make the task's files at %s read-only: %w", m.Target, err)
		}
	}
	return nil
}
