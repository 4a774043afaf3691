//go:build linux

// Package netns creates, opens and enters network namespaces.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNone says that a path does not lead to a network namespace.
var ErrNone = errors.New("not a network namespace")

// Namespace is an open network namespace. It stays the same namespace even if its path
// leads to another one later.
type Namespace struct {
	// Path is where the namespace was opened.
	Path string
	// Device and Inode identify the namespace.
	Device, Inode uint64

	file *os.File
	link *netlink.Handle
}

// Open opens the namespace that a path leads to.
func Open(path string) (*Namespace, error) { return open(path, path) }

func open(path, from string) (*Namespace, error) {
	file, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	n, err := wrap(path, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return n, nil
}

// ownMounts leads to the mounts of the calling thread.
const ownMounts = "/proc/thread-self/ns/mnt"

func wrap(path string, file *os.File) (*Namespace, error) {
	fd := int(file.Fd())
	// NS_GET_NSTYPE fails on what is not a namespace.
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%s: %w", path, ErrNone)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Namespace{Path: path, Device: stat.Dev, Inode: stat.Ino, file: file}, nil
}

// FD returns the file descriptor of the namespace. It is valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Same reports whether two handles lead to one namespace.
func (n *Namespace) Same(other *Namespace) bool {
	return other != nil && n.Device == other.Device && n.Inode == other.Inode
}

// Link returns a handle for links, addresses and routes of the namespace. The first call
// opens it, and Close closes it. It is not safe for concurrent first use.
func (n *Namespace) Link() (*netlink.Handle, error) {
	if n.link != nil {
		return n.link, nil
	}
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in %s: %w", n.Path, err)
	}
	n.link = h
	return h, nil
}

// Close releases the handle. The namespace remains.
func (n *Namespace) Close() error {
	if n.link != nil {
		n.link.Close()
		n.link = nil
	}
	return n.file.Close()
}

// Mounts are the mounts of the machine. A service manager may have given the process
// mounts of its own, which end with it, and in which parameters of the kernel are
// read-only.
type Mounts struct {
	// Process is the directory in /proc of a process that has the machine's mounts. If
	// there is no way there, those of this process must do.
	Process string
}

// Open opens the namespace that a path leads to, in the mounts of this process or of the
// machine.
func (m Mounts) Open(path string) (*Namespace, error) {
	n, err := Open(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNone) {
		return n, err
	}
	if n, other := m.openThere(path); other == nil {
		return n, nil
	}
	return nil, err
}

// openThere opens the namespace that a path leads to on the machine. Links on the way, as
// /var/run is one, are followed there.
func (m Mounts) openThere(path string) (*Namespace, error) {
	root, err := os.Open(filepath.Join(m.Process, "root"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	n, err := wrap(path, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return n, nil
}

// Visible returns a path by which other processes with the mounts of this one find a
// namespace. It leads through the machine's mounts if the given one leads nowhere.
func (m Mounts) Visible(path string) string {
	n, err := Open(path)
	if err == nil {
		_ = n.Close()
		return path
	}
	through := filepath.Join(m.Process, "root", path)
	if n, err = Open(through); err != nil {
		return path
	}
	_ = n.Close()
	return through
}

// enter moves the calling thread to the machine's mounts. The thread must end with the
// call: it cannot return.
func (m Mounts) enter() error {
	// The process's first thread may be elsewhere for a call: /proc/self follows it.
	var own, machine unix.Stat_t
	if err := unix.Stat(ownMounts, &own); err != nil {
		return err
	}
	if err := unix.Stat(m.Process+"/ns/mnt", &machine); err != nil || own.Dev == machine.Dev && own.Ino == machine.Ino {
		// Without a way there, the mounts of the process must do.
		return nil
	}
	file, err := os.Open(m.Process + "/ns/mnt")
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	// Threads share their root and working directory otherwise.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter the machine's mounts: %w", err)
	}
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the machine's mounts: %w", err)
	}
	return nil
}

// Do calls a function on a thread that is in a namespace, with the machine's mounts.
func (m Mounts) Do(n *Namespace, call func() error) error {
	return n.Do(func() error {
		if err := m.enter(); err != nil {
			return err
		}
		return call()
	})
}

// Do calls a function on a thread that is in the namespace. Sockets that it opens belong
// to the namespace from then on.
func (n *Namespace) Do(call func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Path, err)
		}
		return call()
	})
}

// onThread calls a function on a thread of its own. The thread ends with the call unless
// it could return to the namespace of the process.
func onThread(call func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer func() { _ = home.Close() }()
		var before, after unix.Stat_t
		err = unix.Stat(ownMounts, &before)
		if err == nil {
			err = call()
		}
		// A thread that stays elsewhere must not serve other goroutines: it stays locked,
		// and ends with this goroutine.
		if unix.Stat(ownMounts, &after) == nil && before.Ino == after.Ino && unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Scratch calls a function in a new namespace that ends with the call.
func Scratch(call func(*Namespace) error) error {
	var n *Namespace
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		n, err = Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = n.Close() }()
	return call(n)
}

// Create opens the namespace at a path, and creates it if there is none. It reports
// whether it was created.
func (m Mounts) Create(path string) (n *Namespace, created bool, err error) {
	n, err = m.Open(path)
	if err == nil {
		return n, false, nil
	}
	// An empty file is what a crash between the next two steps leaves.
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNone) {
		return nil, false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, false, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return nil, false, err
	}
	if err := file.Close(); err != nil {
		return nil, false, err
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if n, err = open(path, "/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err = m.enter(); err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		if err != nil {
			return errors.Join(err, n.Close())
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("create network namespace %s: %w", path, err)
	}
	return n, true, nil
}

// Remove removes the name of a namespace. The namespace ends when no process and no
// handle uses it any longer. A path that leads nowhere is not an error.
func (m Mounts) Remove(path string) error {
	err := onThread(func() error {
		if err := m.enter(); err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
		// Among mounts that were copied from the machine's, it is still mounted.
		return os.Remove(path)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
