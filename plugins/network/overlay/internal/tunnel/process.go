//go:build linux

package tunnel

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/musterhq/muster/plugins/internal/durable"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// Argument is the first argument of the process that runs a device in user space.
const Argument = "tunnel"

const (
	// startTime bounds how long the process may take until it can be configured.
	startTime = 10 * time.Second
	// checkTime is how often the process looks whether its device is still needed.
	checkTime = time.Second
)

// Files of the process.
const (
	hostFile  = 3
	readyFile = 4
)

// startProcess starts a process that runs a device in the tunnel's namespace, and returns
// when it can be configured. The process outlives this one. It is told no key: keys reach
// it through the device's socket.
func (t *Tunnel) startProcess(name string) error {
	outer, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", t.config.Host.FD()))
	if err != nil {
		return err
	}
	defer func() { _ = outer.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	var process *os.Process
	err = t.space.Do(func() (err error) {
		process, err = durable.Start(durable.Process{
			Args:  []string{"muster-tunnel", Argument, name, strconv.Itoa(t.mtu()), t.space.Path, t.config.Mounts.Process},
			Files: []*os.File{outer, w},
		})
		return err
	})
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("start process for encrypted networks: %w", err)
	}
	go func() { _, _ = process.Wait() }()
	if err := r.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return fmt.Errorf("start process for encrypted networks: %w", err)
	}
	said, err := bufio.NewReader(r).ReadString('\n')
	if said = strings.TrimSpace(said); said != "" {
		return errors.New(said)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(fmt.Errorf("start process for encrypted networks: it is not ready after %v", startTime), process.Kill())
	}
	if err != nil {
		return errors.New("start process for encrypted networks: it ended at once")
	}
	return nil
}

// Run runs a device in user space until the device is removed, its namespace or its socket
// is no longer found where the plugin looks for it, or the process is asked to end. Its
// arguments are those after Argument.
func Run(args []string) error {
	ready := os.NewFile(readyFile, "ready")
	if len(args) != 4 || ready == nil {
		return errors.New("this is started by the plugin, and not by people")
	}
	d, listener, err := open(args[0], args[1])
	if err != nil {
		_, _ = fmt.Fprintf(ready, "run WireGuard in user space: %v\n", err)
		return err
	}
	defer d.Close()
	defer func() { _ = listener.Close() }()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c)
		}
	}()
	if _, err := ready.WriteString("\n"); err != nil {
		return err
	}
	_ = ready.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	return untilUnneeded(stop, d.Wait(), args[0], args[2], netns.Mounts{Process: args[3]})
}

// untilUnneeded returns when a device was removed, or when the plugin no longer finds it.
func untilUnneeded(stop <-chan os.Signal, removed <-chan struct{}, name, path string, mounts netns.Mounts) error {
	own, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if err := own.Close(); err != nil {
		return err
	}
	socket, err := os.Lstat(socketOf(name))
	if err != nil {
		return err
	}
	check := time.NewTicker(checkTime)
	defer check.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-removed:
			return nil
		case <-check.C:
		}
		if now, err := os.Lstat(socketOf(name)); err != nil || !os.SameFile(socket, now) {
			return nil
		}
		now, err := mounts.Open(path)
		if err != nil {
			return nil
		}
		same := own.Same(now)
		if err := now.Close(); err != nil || !same {
			return err
		}
	}
}

func open(name, size string) (*device.Device, net.Listener, error) {
	host, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", hostFile))
	if err != nil {
		return nil, nil, err
	}
	mtu, err := strconv.Atoi(size)
	if err != nil {
		return nil, nil, err
	}
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, nil, err
	}
	listener, err := ipc.UAPIListen(name, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, nil, err
	}
	link, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	log := device.NewLogger(device.LogLevelSilent, "")
	return device.NewDevice(link, &outside{Bind: conn.NewDefaultBind(), host: host}, log), listener, nil
}

// outside opens sockets in the namespace that the node's addresses are in. The device is
// in another one.
type outside struct {
	conn.Bind
	host *netns.Namespace
}

// Open opens the sockets.
func (o *outside) Open(port uint16) (receive []conn.ReceiveFunc, actual uint16, err error) {
	err = o.host.Do(func() (err error) {
		receive, actual, err = o.Bind.Open(port)
		return err
	})
	return receive, actual, err
}
