//go:build unix

package pluginhost

import (
	"os/exec"
	"syscall"
)

// separate gives a process a process group of its own.
func separate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
