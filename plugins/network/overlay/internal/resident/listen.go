//go:build linux

package resident

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// namesPort is the port of name servers.
const namesPort = 53

// sockets are those of one network.
type sockets struct {
	// device and inode are those of the network's namespace.
	device, inode uint64
	udp           *net.UDPConn
	tcp           *net.TCPListener
}

func (s *sockets) close() { _, _ = s.udp.Close(), s.tcp.Close() }

// listening is the process's presence on one network.
type listening struct {
	*sockets
	stop  context.CancelFunc
	ended chan struct{}
}

// close stops answering. What was read is answered.
func (l *listening) close() {
	if l != nil {
		l.stop()
		<-l.ended
	}
}

// works reports whether the network is answered in the namespace.
func (l *listening) works(space *netns.Namespace) bool {
	if l == nil || l.device != space.Device || l.inode != space.Inode {
		return false
	}
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// listenAll makes the process answer on all networks.
func (s *service) listenAll() map[string]error {
	failed := make(map[string]error)
	for id := range s.networks {
		if err := s.listen(id); err != nil {
			failed[id] = fmt.Errorf("start name server: %w", err)
		}
	}
	return failed
}

func (s *service) listen(network string) error {
	path := filepath.Join(s.config.Namespaces, "muster-"+link.Short(s.node.GetId())+"-"+link.Short(network))
	find := func() (*netns.Namespace, error) { return netns.Mounts{Process: s.config.Machine}.Open(path) }
	space, err := find()
	if err != nil {
		return err
	}
	defer func() { _ = space.Close() }()
	if err := s.relays.listen(network, find); err != nil {
		s.log.Warn("failed to take connections to published ports", zap.String("network", network), zap.Error(err))
	}
	before := s.networks[network]
	if before.works(space) {
		return nil
	}
	before.close()
	s.networks[network] = nil
	opened, err := open(space)
	if err != nil {
		return err
	}
	s.networks[network] = s.answer(network, opened)
	return nil
}

// open opens the sockets of a network.
func open(space *netns.Namespace) (*sockets, error) {
	opened := &sockets{device: space.Device, inode: space.Inode}
	err := space.Do(func() (err error) {
		own := net.IP(link.Gateway.AsSlice())
		if opened.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: own, Port: namesPort}); err != nil {
			return err
		}
		if opened.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: own, Port: namesPort}); err != nil {
			return errors.Join(err, opened.tcp.Close())
		}
		return nil
	})
	return opened, err
}

// answer answers at sockets of a network.
func (s *service) answer(network string, from *sockets) *listening {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listening{sockets: from, stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		if err := s.names.Serve(ctx, network, from.udp, from.tcp); err != nil {
			s.log.Warn("name server ended", zap.String("network", network), zap.Error(err))
		}
	}()
	return l
}

// dialHost connects from the host's namespace.
func (s *service) dialHost(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if s.config.Host == OwnSpace {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	err = s.host.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// name returns the name under which the sockets of a network are handed over.
func (s *sockets) name(network string) string {
	return network + " " + strconv.FormatUint(s.device, 10) + " " + strconv.FormatUint(s.inode, 10)
}
