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
func Open(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	n, err := wrap(path, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return n, nil
}

// Current opens the namespace of the process.
func Current() (*Namespace, error) { return Open("/proc/self/ns/net") }

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
		err = call()
		// A thread that stays elsewhere must not serve other goroutines: it stays locked,
		// and ends with this goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
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
func Create(path string) (n *Namespace, created bool, err error) {
	if n, err = Open(path); err == nil {
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
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, false, fmt.Errorf("create network namespace %s: %w", path, err)
	}
	if n, err = Open(path); err != nil {
		return nil, false, err
	}
	return n, true, nil
}

// Remove removes the name of a namespace. The namespace ends when no process and no
// handle uses it any longer. A path that leads nowhere is not an error.
func Remove(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
