//go:build linux

package tunnel

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// reservation keeps two UDP ports for a worker that does not use them yet. Each port has a
// socket whose name tells the other workers of the host's namespace. It ends with the
// process: a device that outlives it has the port itself.
type reservation struct {
	first   uint16
	sockets []*net.UnixConn
}

func (r *reservation) close() (err error) {
	for _, s := range r.sockets {
		err = errors.Join(err, s.Close())
	}
	*r = reservation{}
	return err
}

// reserve reserves two UDP ports, instead of those before, and reports whether no other
// worker has them.
func (t *Tunnel) reserve(first uint16) (bool, error) {
	if t.reserved.first == first {
		return true, nil
	}
	next := reservation{first: first}
	for _, port := range []uint16{first, first + 1} {
		err := t.config.Host.Do(func() error {
			s, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@muster-encrypted-port-%d", port), Net: "unixgram"})
			if err == nil {
				next.sockets = append(next.sockets, s)
			}
			return err
		})
		if errors.Is(err, syscall.EADDRINUSE) {
			return false, next.close()
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("reserve UDP port %d: %w", port, err), next.close())
		}
	}
	err := t.reserved.close()
	t.reserved = next
	return true, err
}

// choosePort returns the first of two UDP ports that nothing uses and no other worker has
// reserved, and reserves them.
func (t *Tunnel) choosePort() (uint16, error) {
	if t.config.Port != 0 {
		// If another worker has them, create reports it.
		_, err := t.reserve(t.config.Port)
		return t.config.Port, err
	}
	const tries = 100
	for i := range uint16(tries) {
		first := DefaultPort + 2*i
		if !t.portIsFree(first) || !t.portIsFree(first+1) {
			continue
		}
		if reserved, err := t.reserve(first); reserved || err != nil {
			return first, err
		}
	}
	return 0, fmt.Errorf("all UDP ports from %d to %d are in use: choose two with MUSTER_NETWORK_ENCRYPTED_PORT", DefaultPort, DefaultPort+2*tries-1)
}

// portIsFree reports whether a UDP port of the host can be used.
func (t *Tunnel) portIsFree(port uint16) bool {
	err := t.config.Host.Do(func() error {
		for _, network := range []string{"udp4", "udp6"} {
			c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
			if err == nil {
				err = c.Close()
			}
			if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
				return err
			}
		}
		return nil
	})
	return err == nil
}

const (
	// portWait is how long a node waits for its own port. Peers send to it, and the process
	// that had it may need a moment to end.
	portWait = 2 * time.Second
	// portLook is how often a port is tried meanwhile.
	portLook = 10 * time.Millisecond
)

// takePort returns when a key's device can have its port. If something else keeps the port,
// the node gets other ones where it may. Peers learn of them from the first packet of the
// new device, as with every node that moves.
func (t *Tunnel) takePort(k *key) error {
	reserved, err := t.reserve(t.record.Port)
	if err != nil {
		return err
	}
	port := t.portOf(k)
	free := reserved && t.portIsFree(port)
	if reserved && !free {
		t.log.Warn("waiting for the UDP port of encrypted networks, which is in use", zap.Uint16("port", port))
		for end := time.Now().Add(portWait); !free && time.Now().Before(end); free = t.portIsFree(port) {
			time.Sleep(portLook)
		}
	}
	if free {
		return nil
	}
	if t.config.Port != 0 || len(t.record.Keys) > 1 {
		return fmt.Errorf("another worker or program on this machine uses UDP port %d: give each worker two ports of its own with MUSTER_NETWORK_ENCRYPTED_PORT", port)
	}
	next := *t.record
	if next.Port, err = t.choosePort(); err != nil {
		return err
	}
	if err := next.write(t.config.StateDir); err != nil {
		return err
	}
	t.record = &next
	t.log.Warn("UDP port of encrypted networks was changed, because something else uses it", zap.Uint16("port", port), zap.Uint16("now", t.portOf(k)))
	return nil
}
