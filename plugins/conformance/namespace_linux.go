package conformance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/thread"
)

// newNamespace makes a network namespace that has a path, and returns what removes it.
// An error says that this process may not.
func newNamespace(dir, name string) (path string, remove func() error, err error) {
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", nil, err
	}
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := unix.Mount(threadNamespace(), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("give the network namespace a path: %w", err)
		}
		return nil
	})
	if err != nil {
		_ = os.Remove(path)
		return "", nil, err
	}
	return path, func() error {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return err
		}
		return os.Remove(path)
	}, nil
}

// interfacesIn returns the addresses of the interfaces in a namespace, by name.
func interfacesIn(path string) (map[string][]string, error) {
	found := map[string][]string{}
	err := thread.Run(func() error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			addresses, err := i.Addrs()
			if err != nil {
				return err
			}
			found[i.Name] = []string{}
			for _, a := range addresses {
				if prefix, ok := a.(*net.IPNet); ok {
					found[i.Name] = append(found[i.Name], prefix.IP.String())
				}
			}
		}
		return nil
	})
	return found, err
}

func threadNamespace() string {
	return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
}

// namespaceInode returns the inode of the network namespace at a path. It is 0 where there
// is none.
func namespaceInode(path string) uint64 {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &stat) != nil {
		return 0
	}
	return stat.Ino
}
