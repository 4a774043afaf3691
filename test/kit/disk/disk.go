//go:build linux

// Package disk makes small file systems for tests of full disks.
package disk

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/test/kit/need"
)

// Small returns a directory with a file system of its own, of that many bytes, which ends
// with the test. It needs root.
func Small(t testing.TB, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
		need.Met(t, fmt.Errorf("mount a file system: %w", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Fill writes a file that takes all remaining room on its disk.
func Fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("fill a disk: %w", err)
	}
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(fmt.Errorf("fill a disk: %w", err), f.Close())
	}
	return f.Close()
}
