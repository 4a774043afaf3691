package networksdk

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// EnterMachineNetwork makes the whole process one of the machine's network namespace, if
// its worker is in a container and was started with --machine-pid. A plugin that
// changes the network of its node calls it first in main: the program is executed again,
// because the threads of a process can be in different namespaces.
func EnterMachineNetwork() error {
	process := Machine()
	if process == "" {
		return nil
	}
	path := filepath.Join(process, "ns/net")
	var own, machine unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return fmt.Errorf("find the network of the process: %w", err)
	}
	if err := unix.Stat(path, &machine); err != nil {
		return fmt.Errorf("find the machine's network at %s: %w", path, err)
	}
	if own.Dev == machine.Dev && own.Ino == machine.Ino {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the machine's network: %w", err)
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the machine's network at %s: %w", path, err)
	}
	return fmt.Errorf("execute the program again in the machine's network: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}
