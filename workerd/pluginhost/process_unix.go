//go:build unix

package pluginhost

import (
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// separate gives a process a process group of its own.
func separate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// trustedOwner returns whom a file belongs to, and whether that is root or the user
// that this process runs as.
func trustedOwner(info fs.FileInfo) (owner int, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, false
	}
	owner = int(stat.Uid)
	return owner, owner == 0 || owner == os.Geteuid()
}

// isOurs says whether a file belongs to the user that this process runs as.
func isOurs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
