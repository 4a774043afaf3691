//go:build linux

package durable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxName is the length of the longest name in bytes, and maxFiles the number of sockets
// that go with a name.
const (
	maxName  = 4096
	maxFiles = 16
)

// inDir calls a function with a short path to a file in a directory. The address of a
// socket has room for some 100 bytes only.
func inDir(dir, name string, call func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return call(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// Listen listens at a socket in a directory that only its owner can enter. A socket that
// is there is replaced at once: its process gets no new connections. The network is
// "unix" or "unixpacket".
func Listen(dir, name, network string) (*net.UnixListener, error) {
	var listener *net.UnixListener
	err := inDir(dir, name+".new", func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var err error
		if listener, err = net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network}); err != nil {
			return err
		}
		listener.SetUnlinkOnClose(false)
		if err := os.Chmod(path, 0o600); err != nil {
			return errors.Join(err, listener.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Dial connects to a socket in a directory.
func Dial(ctx context.Context, dir, name, network string) (*net.UnixConn, error) {
	var conn net.Conn
	err := inDir(dir, name, func(path string) (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Send sends sockets under a name. They stay open here: both processes get what arrives
// at them until one closes them.
func Send(conn *net.UnixConn, name string, sockets ...syscall.Conn) error {
	if len(name) == 0 || len(name) > maxName || len(sockets) > maxFiles {
		return fmt.Errorf("cannot hand over %d sockets under a name of %d bytes", len(sockets), len(name))
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, s := range sockets {
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var fd int
		var failed error
		err = raw.Control(func(own uintptr) { fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	_, _, err := conn.WriteMsgUnix([]byte(name), unix.UnixRights(fds...), nil)
	return err
}

// Receive receives what Send sent. When the other side has closed the connection, the
// error is io.EOF.
func Receive(conn *net.UnixConn) (name string, files []*os.File, err error) {
	text, control := make([]byte, maxName), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, c, flags, _, err := conn.ReadMsgUnix(text, control)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:c])
	if err != nil {
		return "", nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), string(text[:n])))
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		for _, f := range files {
			_ = f.Close()
		}
		return "", nil, errors.New("what was handed over is too large")
	}
	return string(text[:n]), files, nil
}
