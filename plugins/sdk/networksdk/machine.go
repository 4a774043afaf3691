package networksdk

import (
	"os"
	"path/filepath"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Machine returns the directory in /proc of a process that has the machine's network and
// mounts. It is empty unless the worker is in a container, and was started with
// --machine-pid.
func Machine() string {
	if pid := os.Getenv(wire.MachinePIDKey); pid != "" {
		return filepath.Join("/proc", pid)
	}
	return ""
}

// MachineFile returns where this process finds a file of the machine, such as
// /etc/resolv.conf.
func MachineFile(path string) string {
	if machine := Machine(); machine != "" {
		return filepath.Join(machine, "root", path)
	}
	return path
}
