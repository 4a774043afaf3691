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

// isOurs says whether a file belongs to the user that this process runs as.
func isOurs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
