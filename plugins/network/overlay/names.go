//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"

	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// namesPort is the port of name servers.
const namesPort = 53

// listening is the name server's presence on one network.
type listening struct {
	stop  context.CancelFunc
	ended chan struct{}
}

func (l *listening) close() {
	l.stop()
	<-l.ended
}

// ensureNames makes the name server answer in the network's namespace.
func (n *network) ensureNames() error {
	if n.names != nil {
		select {
		case <-n.names.ended:
			n.names.close()
		default:
			return nil
		}
	}
	var udp *net.UDPConn
	var tcp net.Listener
	err := n.sandbox.Space.Do(func() (err error) {
		address := net.JoinHostPort(link.Gateway.String(), fmt.Sprint(namesPort))
		if tcp, err = net.Listen("tcp4", address); err != nil {
			return err
		}
		if udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: link.Gateway.AsSlice(), Port: namesPort}); err != nil {
			return errors.Join(err, tcp.Close())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("start name server: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &listening{stop: cancel, ended: make(chan struct{})}
	n.names = l
	go func() {
		defer close(l.ended)
		if err := n.plugin.names.Serve(ctx, n.id, udp, tcp); err != nil {
			n.plugin.log.Warn("name server ended", zap.String("network", n.id), zap.Error(err))
		}
	}()
	return nil
}

// dialHost connects from the host's namespace.
func (p *Plugin) dialHost(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.host.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
