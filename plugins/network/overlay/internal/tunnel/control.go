//go:build linux

package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// socketDirectory is where the library keeps the sockets of devices in user space.
const socketDirectory = "/var/run/wireguard"

func socketOf(name string) string { return filepath.Join(socketDirectory, name+".sock") }

// staleAge is how old a socket must be to be stale: a process that starts may have made a
// younger one, on which it does not listen yet.
const staleAge = time.Minute

// removeStaleSockets removes the sockets of devices whose processes were killed, of this
// node and of others that were on this machine.
func removeStaleSockets() error {
	paths, err := filepath.Glob(socketOf(link.TunnelPrefix + "*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || time.Since(info.ModTime()) < staleAge {
			continue
		}
		conn, dialled := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if dialled == nil {
			err = conn.Close()
		} else if errors.Is(dialled, syscall.ECONNREFUSED) {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the socket of a process that is gone: %w", err)
		}
	}
	return nil
}

// control is what devices are configured through.
type control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, config wgtypes.Config) error
}

// answerLimit is how long a device may take for one call.
const answerLimit = 5 * time.Second

// errSilent says that a device has not answered in time.
var errSilent = fmt.Errorf("it does not answer within %v", answerLimit)

// bounded limits how long calls take. The library would wait for a process that hangs.
type bounded struct{ client *wgctrl.Client }

func (b bounded) Device(name string) (*wgtypes.Device, error) {
	return within(func() (*wgtypes.Device, error) { return b.client.Device(name) })
}

func (b bounded) ConfigureDevice(name string, config wgtypes.Config) error {
	_, err := within(func() (struct{}, error) { return struct{}{}, b.client.ConfigureDevice(name, config) })
	return err
}

// within returns what a call returns. One that takes too long continues until its process
// ends: a process that is silent is removed.
func within[T any](call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := call()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(answerLimit):
		var none T
		return none, errSilent
	}
}

// process is a process that runs a device, seen through its socket. It may be nil.
type process struct{ conn *net.UnixConn }

// findProcess returns the process that runs a device, or nil.
func findProcess(name string) (*process, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketOf(name), Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &process{conn}, nil
}

func (p *process) close() error {
	if p == nil {
		return nil
	}
	return p.conn.Close()
}

// endLimit is how long a process may take to end after its device was removed.
const endLimit = 3 * time.Second

// end returns when the process has ended, whose device was removed. One that hangs is
// killed.
func (p *process) end() error {
	if p == nil {
		return nil
	}
	ended, err := p.awaitEnd()
	if ended || err != nil {
		return err
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	// A process of another process namespace has no number here.
	if peer.Pid > 1 {
		if err := unix.Kill(int(peer.Pid), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d of encrypted networks: %w", peer.Pid, err)
		}
		if ended, err = p.awaitEnd(); ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d of encrypted networks does not end", peer.Pid)
}

func (p *process) awaitEnd() (bool, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(endLimit)); err != nil {
		return false, err
	}
	_, err := p.conn.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded), nil
}
