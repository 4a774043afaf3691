package files

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ensureTmpfs mounts a tmpfs on a directory that is on none.
func ensureTmpfs(dir string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("find the file system of %s: %w", dir, err)
	}
	if stat.Type == unix.TMPFS_MAGIC || stat.Type == unix.RAMFS_MAGIC {
		return nil
	}
	// Without the option, which needs Linux 6.4, the kernel may write files to swap space.
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,noswap")
	if err != nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w: run the worker as root, or give it a runtime directory on a tmpfs", dir, err)
	}
	return nil
}
