package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace in which a test opens sockets.
type Namespace struct {
	path string
	// closing is held for reading by calls in the namespace, and by Close.
	closing sync.RWMutex
	closed  bool
	// outside and inside are the namespaces of this process and of the sockets.
	outside, inside *os.File
}

// Open opens the namespace at a path, such as /proc/1/ns/net. It stays as long as it is
// open. The caller closes it.
func Open(path string) (*Namespace, error) {
	n := &Namespace{}
	if err := n.open(path); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Namespace) open(path string) (err error) {
	n.path = path
	if n.outside, err = os.Open(ownNamespace); err != nil {
		return err
	}
	n.inside, err = os.Open(path)
	return err
}

// Close lets the namespace go when the calls in it have ended.
func (n *Namespace) Close() error {
	n.closing.Lock()
	defer n.closing.Unlock()
	n.closed = true
	var errs []error
	for _, f := range []*os.File{n.outside, n.inside} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// DialContext connects from the namespace.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return within(n, func() (net.Conn, error) {
		return (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
	})
}

// Listen listens in the namespace.
func (n *Namespace) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return within(n, func() (net.Listener, error) { return (&net.ListenConfig{}).Listen(ctx, network, address) })
}

// Interfaces returns the namespace's network interfaces.
func (n *Namespace) Interfaces() ([]net.Interface, error) { return within(n, net.Interfaces) }

// Packets returns a socket that gets a copy of each packet on an interface. The caller closes
// it.
func (n *Namespace) Packets(device string) (fd int, err error) {
	return within(n, func() (int, error) {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return -1, err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the order of the network
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return -1, err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		return fd, nil
	})
}

// within calls a function in the namespace. A socket belongs to the namespace of the
// thread that makes it.
func within[T any](n *Namespace, call func() (T, error)) (T, error) {
	var none T
	n.closing.RLock()
	defer n.closing.RUnlock()
	if n.closed {
		return none, os.ErrClosed
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(n.inside.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return none, fmt.Errorf("enter network namespace %s: %w", n.path, err)
	}
	result, err := call()
	if rerr := unix.Setns(int(n.outside.Fd()), unix.CLONE_NEWNET); rerr != nil {
		// The thread stays locked, and so ends with its goroutine.
		return none, errors.Join(fmt.Errorf("return from network namespace %s: %w", n.path, rerr), err)
	}
	runtime.UnlockOSThread()
	return result, err
}
