//go:build linux

package supervise

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/thread"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
)

// enterNetwork makes this thread, whose mounts no other process sees, one whose children are
// in the network namespace of the task, and see its resolv.conf and hosts file. The mounts
// end with the last process of the task.
func enterNetwork(dir taskdir.Dir) error {
	network, err := networkOf(dir)
	if err != nil {
		return err
	}
	if err := setNetwork(network.Namespace); err != nil {
		return err
	}
	for path, source := range dir.EtcFiles(network) {
		if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the task's %s: %w", path, err)
		}
	}
	return nil
}

// networkOf returns the network of a networked task.
func networkOf(dir taskdir.Dir) (*taskdir.Network, error) {
	network, err := dir.Network()
	if err == nil && network == nil {
		err = errors.New("the task's network is not known")
	}
	return network, err
}

// setNetwork makes this thread join a network namespace.
func setNetwork(path string) error {
	namespace, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
	if err := errors.Join(err, namespace.Close()); err != nil {
		return fmt.Errorf("join the network namespace %s: %w", path, err)
	}
	return nil
}

// ownMounts makes this thread one whose mounts no other process sees. It still sees those
// of others.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from other processes: %w", err)
	}
	return nil
}

// CanEnterNetwork returns why no task can be run in a network namespace here; nil if that
// is possible. It tries.
func CanEnterNetwork() error {
	return thread.Run(func() error {
		if err := setNetwork("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return ownMounts()
	})
}
