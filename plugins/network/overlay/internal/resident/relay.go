//go:build linux

package resident

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

const (
	// maxDials is how many tasks are connected to at once: each takes a thread. A port whose
	// tasks do not answer gets portDials of them.
	maxDials  = 1024
	portDials = 64
	// dialTime bounds an attempt to connect to a task, and dialTries is how many tasks
	// are tried.
	dialTime  = 2 * time.Second
	dialTries = 3
	// headerVersion is the version of the PROXY protocol.
	headerVersion = 2
	// acceptPause is how long a port waits after it could not accept a connection.
	acceptPause = 50 * time.Millisecond
	// complaintPause is how often it is logged that connections cannot be taken.
	complaintPause = time.Minute
)

// relays take connections to published ports whose tasks are told the client's address by
// the PROXY protocol, and hand them on. Connections end with the process, so it outlives its
// successor's start until they have ended.
type relays struct {
	log       *zap.Logger
	complaint rate.Sometimes
	shares    *shares
	dials     chan struct{}
	// open are the connections.
	open sync.WaitGroup

	// mu guards what follows.
	mu       sync.Mutex
	node     string
	networks map[string]*relayed
}

// relayed is a network with published ports.
type relayed struct {
	// own are the node's addresses on the network, from which tasks are connected to.
	own      []netip.Addr
	services map[string]*relayedService
	ports    map[uint16]*relay
}

type relayedService struct {
	ports    []*musterv1.PortConfig
	backends map[string]*networkv1.Backend
}

// relay is one port.
type relay struct {
	*relays
	space    *netns.Namespace
	listener *net.TCPListener
	targets  atomic.Pointer[[]target]
	share    share
	// dials are those of this port.
	dials chan struct{}
}

// target is a task, and where connections to it come from.
type target struct {
	task netip.AddrPort
	own  netip.Addr
}

func newRelays(log *zap.Logger) *relays {
	return &relays{
		log: log, complaint: rate.Sometimes{Interval: complaintPause}, shares: newShares(openFiles()), dials: make(chan struct{}, maxDials), networks: make(map[string]*relayed),
	}
}

// apply takes over what a request says of networks with published ports.
func (r *relays) apply(request *networkv1.ApplyRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node = request.GetNode().GetId()
	named := make(map[string]bool)
	for _, n := range request.GetNetworks() {
		if named[n.GetId()] = n.GetIngress(); !n.GetIngress() {
			continue
		}
		if r.networks[n.GetId()] == nil {
			r.networks[n.GetId()] = &relayed{services: make(map[string]*relayedService), ports: make(map[uint16]*relay)}
		}
		r.networks[n.GetId()].own = parseAddresses(n.GetNodeAddresses())
	}
	for _, id := range request.GetRemovedNetworks() {
		r.remove(id)
	}
	if request.GetComplete() {
		for id, n := range r.networks {
			if !named[id] {
				r.remove(id)
			}
			clear(n.services)
		}
	}
	for _, s := range request.GetServices() {
		if n := r.networks[s.GetNetworkId()]; n != nil {
			if n.services[s.GetId()] == nil {
				n.services[s.GetId()] = &relayedService{backends: make(map[string]*networkv1.Backend)}
			}
			n.services[s.GetId()].ports = s.GetPorts()
		}
	}
	for _, ref := range request.GetRemovedServices() {
		if n := r.networks[ref.GetNetworkId()]; n != nil {
			delete(n.services, ref.GetServiceId())
		}
	}
	for _, b := range request.GetBackends() {
		n := r.networks[b.GetNetworkId()]
		if n == nil || n.services[b.GetServiceId()] == nil {
			continue
		}
		known := n.services[b.GetServiceId()].backends
		if b.GetComplete() {
			clear(known)
		}
		for _, one := range b.GetBackends() {
			known[one.GetTaskId()] = one
		}
		for _, id := range b.GetRemoved() {
			delete(known, id)
		}
	}
}

// remove forgets a network. Its connections end with their tasks. The caller holds mu.
func (r *relays) remove(id string) {
	if n := r.networks[id]; n != nil {
		for port := range n.ports {
			n.close(port)
		}
		delete(r.networks, id)
	}
}

func (n *relayed) close(port uint16) {
	_, _ = n.ports[port].listener.Close(), n.ports[port].space.Close()
	delete(n.ports, port)
}

// stop stops taking connections. Those that were taken continue.
func (r *relays) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.networks {
		r.remove(id)
	}
}

// listen makes the ports of a network be taken in its namespace.
func (r *relays) listen(network string, open func() (*netns.Namespace, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.networks[network]
	if n == nil {
		return nil
	}
	want := n.targets(r.node)
	for port := range n.ports {
		if _, wanted := want[port]; !wanted {
			n.close(port)
		}
	}
	var errs []error
	for port, targets := range want {
		space, err := open()
		if err != nil {
			return err
		}
		have := n.ports[port]
		if have != nil && have.space.Same(space) {
			have.targets.Store(&targets)
			errs = append(errs, space.Close())
			continue
		}
		if have != nil {
			n.close(port)
		}
		p := &relay{relays: r, space: space, dials: make(chan struct{}, portDials)}
		if p.listener, err = listenAt(space, port); err != nil {
			errs = append(errs, fmt.Errorf("take connections to port %d: %w", port, err), space.Close())
			continue
		}
		p.targets.Store(&targets)
		n.ports[port] = p
		go p.accept(p.listener)
	}
	return errors.Join(errs...)
}

// targets returns where connections to each port lead.
func (n *relayed) targets(node string) map[uint16][]target {
	want := make(map[uint16][]target)
	for _, s := range n.services {
		for _, p := range s.ports {
			if !p.GetProxyProtocol() || p.GetPublishMode() == musterv1.PortConfig_HOST || p.GetPublishedPort() == 0 {
				continue
			}
			targets := []target{}
			for _, b := range s.backends {
				if p.GetExternalTraffic() == musterv1.PortConfig_LOCAL && b.GetNodeId() != node {
					continue
				}
				// The first address will do: tasks are told the client's in any case.
				for _, a := range parseAddresses(b.GetAddresses()) {
					if i := slices.IndexFunc(n.own, func(own netip.Addr) bool { return own.Is4() == a.Is4() }); i >= 0 {
						targets = append(targets, target{netip.AddrPortFrom(a, uint16(p.GetTargetPort())), n.own[i]})
						break
					}
				}
			}
			want[uint16(p.GetPublishedPort())] = targets
		}
	}
	return want
}

// parseAddresses reads addresses that the SDK has checked. It leaves out what is none.
func parseAddresses(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// listenAt listens at a port in a namespace. The process before this one may listen there
// too: the kernel hands on to this one what that one leaves.
func listenAt(space *netns.Namespace, port uint16) (listener *net.TCPListener, err error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return cmp.Or(err, failed)
	}}
	err = space.Do(func() error {
		l, err := config.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			listener = l.(*net.TCPListener)
		}
		return err
	})
	return listener, err
}

// accept takes connections until the port is closed.
func (p *relay) accept(listener *net.TCPListener) {
	for {
		client, err := listener.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.complaint.Do(func() { p.log.Warn("failed to take a connection", zap.Error(err)) })
			time.Sleep(acceptPause)
			continue
		}
		from := clientOf(client.RemoteAddr())
		if !p.shares.take(&p.share, from) {
			p.complaint.Do(func() {
				p.log.Warn("refused a connection: too many are open", zap.Stringer("at", client.LocalAddr()), zap.Stringer("client", from))
			})
			_, _ = client.SetLinger(0), client.Close()
			continue
		}
		p.open.Go(func() {
			defer p.shares.release(&p.share, from)
			if err := p.relay(client); err != nil {
				p.log.Debug("failed to relay a connection", zap.Error(err))
			}
		})
	}
}

// relay hands a connection on to a task, and returns when it has ended.
func (p *relay) relay(client *net.TCPConn) error {
	defer func() { _ = client.Close() }()
	task, err := p.dial(*p.targets.Load())
	if err != nil {
		// The client gets a reset, as from a task that does not listen.
		return errors.Join(err, client.SetLinger(0))
	}
	defer func() { _ = task.Close() }()
	if _, err := proxyproto.HeaderProxyFromAddrs(headerVersion, client.RemoteAddr(), client.LocalAddr()).WriteTo(task); err != nil {
		return err
	}
	both := make(chan error, 2)
	pipe := func(to, from *net.TCPConn) {
		_, err := io.Copy(to, from)
		if err == nil {
			err = to.CloseWrite()
		}
		both <- err
	}
	go pipe(task, client)
	go pipe(client, task)
	if err := <-both; err != nil {
		// The other direction has no reader any longer.
		return errors.Join(err, client.SetLinger(0), task.SetLinger(0))
	}
	return <-both
}

// sharePorts has connections to different tasks share local ports.
func sharePorts(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) })
	return cmp.Or(err, failed)
}

// dial connects to one of the targets.
func (p *relay) dial(targets []target) (conn *net.TCPConn, err error) {
	err = errors.New("the port has no task")
	for try, i := range rand.Perm(len(targets)) {
		if try == dialTries {
			break
		}
		p.dials <- struct{}{}
		p.relays.dials <- struct{}{}
		err = p.space.Do(func() error {
			from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(targets[i].own, 0))
			c, err := (&net.Dialer{Timeout: dialTime, LocalAddr: from, Control: sharePorts}).Dial("tcp", targets[i].task.String())
			if err == nil {
				conn = c.(*net.TCPConn)
			}
			return err
		})
		_, _ = <-p.dials, <-p.relays.dials
		if err == nil {
			return conn, nil
		}
	}
	return nil, err
}
