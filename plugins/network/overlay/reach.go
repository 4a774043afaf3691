//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

const (
	// triedAtOnce is how many connections a probe tries at the same time.
	triedAtOnce = 16
	// mostTried is how many tasks, and how many nodes, a probe tries.
	mostTried = 128
	// closedPort is one that hardly anything listens on. Who refuses a connection to it
	// has been reached.
	closedPort = 1
)

var _ networksdk.Prober = (*Plugin)(nil)

// prober tries connections on one network.
type prober struct {
	timeout time.Duration
	// space is the namespace from which connections are tried: that of a task, or the
	// network's with the node's own addresses.
	space    *netns.Namespace
	task     bool
	own      []netip.Addr
	network  *networkv1.Network
	node     *networkv1.Node
	service  *networkv1.Service
	backends []*networkv1.Backend
	peers    []*networkv1.Peer
	host     *netns.Namespace

	mu     sync.Mutex
	checks []*musterv1.NetworkCheck
}

// Probe tries whether the tasks of a service are reached.
func (p *Plugin) Probe(ctx context.Context, request *networkv1.ProbeRequest) (string, []*networksdk.Check, error) {
	b, err := p.prober(request)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = b.space.Close() }()
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(triedAtOnce)
	b.tryAll(ctx, func(try func()) {
		all.Go(func() error {
			try()
			return nil
		})
	})
	// The checks hold what went wrong.
	_ = all.Wait()
	source := ""
	if len(b.own) > 0 {
		source = b.own[0].String()
	}
	slices.SortStableFunc(b.checks, func(a, b *networksdk.Check) int { return int(a.Kind) - int(b.Kind) })
	return source, b.checks, nil
}

// prober returns what a probe needs to know of a network, and opens the namespace of a
// task that is on it.
func (p *Plugin) prober(request *networkv1.ProbeRequest) (*prober, error) {
	p.mu.Lock()
	n := p.networks[request.GetNetworkId()]
	p.mu.Unlock()
	if n == nil {
		return nil, errors.New("the network is not set up")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.services[request.GetServiceId()]
	if s == nil || n.sandbox == nil {
		return nil, errors.New("the network is not set up")
	}
	b := &prober{timeout: request.GetTimeout().AsDuration(), network: n.spec, node: n.node, service: s.spec, host: p.host}
	for _, id := range slices.Sorted(maps.Keys(s.backends)) {
		b.backends = append(b.backends, s.backends[id])
	}
	for _, id := range slices.Sorted(maps.Keys(n.peers)) {
		b.peers = append(b.peers, n.peers[id])
	}
	tasks := slices.Sorted(maps.Keys(n.tasks))
	if n.spec.GetIngress() {
		// Its tasks do not reach each other, and it has no names.
		tasks = nil
	}
	for _, id := range tasks {
		t := n.tasks[id]
		space, err := p.mounts().Open(t.request.GetNamespace())
		if err != nil {
			continue // the task has ended
		}
		if space.Same(p.host) {
			_ = space.Close()
			continue
		}
		b.space, b.task, b.own = space, true, t.addressesOn(n.id)
		return b, nil
	}
	var err error
	b.own = n.own()
	b.space, err = p.mounts().Open(n.sandbox.Space.Path)
	return b, err
}

// tryAll tries everything, each thing in a call of start.
func (b *prober) tryAll(ctx context.Context, start func(func())) {
	ports := b.ports()
	if b.task {
		start(func() { b.tryName(ctx) })
		for _, v := range parseAddresses(b.service.GetVirtualIps()) {
			b.tryAddress(ctx, start, ports, v, &musterv1.NetworkCheck{Kind: musterv1.NetworkCheck_VIRTUAL_ADDRESS})
		}
	} else if !b.network.GetIngress() {
		b.note(&musterv1.NetworkCheck{
			Kind: musterv1.NetworkCheck_NAME, Result: musterv1.NetworkCheck_SKIPPED, Target: b.service.GetName(),
			Message: "the node runs no task on the network, so that its name and virtual address cannot be tried from here",
		})
	}
	if b.network.GetIngress() {
		b.tryPublished(ctx, start)
	}
	for i, one := range b.backends {
		if i == mostTried {
			b.note(&musterv1.NetworkCheck{
				Kind: musterv1.NetworkCheck_TASK, Result: musterv1.NetworkCheck_SKIPPED,
				Message: fmt.Sprintf("%d more tasks were not tried", len(b.backends)-i),
			})
			break
		}
		for _, a := range parseAddresses(one.GetAddresses()) {
			b.tryAddress(ctx, start, ports, a, &musterv1.NetworkCheck{Kind: musterv1.NetworkCheck_TASK, TaskId: one.GetTaskId(), NodeId: one.GetNodeId()})
		}
	}
	for _, peer := range b.peers[:min(len(b.peers), mostTried)] {
		if b.network.GetDriver() != DriverBridge {
			start(func() { b.tryPeer(ctx, peer) })
		}
	}
}

// ports returns the TCP ports of the service's tasks that are known.
func (b *prober) ports() []uint16 {
	var ports []uint16
	for _, p := range b.service.GetPorts() {
		if target := uint16(p.GetTargetPort()); p.GetProtocol() == musterv1.PortConfig_TCP && !slices.Contains(ports, target) {
			ports = append(ports, target)
		}
	}
	return ports
}

// tryAddress tries ports of an address. Without ports it tries whether anything answers.
func (b *prober) tryAddress(ctx context.Context, start func(func()), ports []uint16, a netip.Addr, about *musterv1.NetworkCheck) {
	try := func(at string, port uint16, reached bool) {
		c := proto.CloneOf(about)
		c.Target = at
		start(func() {
			b.connect(ctx, b.space, c, netip.AddrPortFrom(a, port))
			if reached && c.Result == musterv1.NetworkCheck_REFUSED {
				c.Result, c.Message = musterv1.NetworkCheck_OK, ""
			}
			b.note(c)
		})
	}
	for _, port := range ports {
		try(netip.AddrPortFrom(a, port).String(), port, false)
	}
	if len(ports) == 0 {
		try(a.String(), closedPort, true)
	}
}

// tryPublished tries the published ports at the node's own address, from the machine.
func (b *prober) tryPublished(ctx context.Context, start func(func())) {
	own, err := netip.ParseAddr(b.node.GetDataPathAddress())
	if err != nil {
		return
	}
	for _, p := range b.service.GetPorts() {
		local := slices.ContainsFunc(b.backends, func(one *networkv1.Backend) bool { return one.GetNodeId() == b.node.GetId() })
		if p.GetProtocol() != musterv1.PortConfig_TCP || p.GetPublishMode() == musterv1.PortConfig_HOST || p.GetPublishedPort() == 0 ||
			p.GetExternalTraffic() == musterv1.PortConfig_LOCAL && !local {
			continue
		}
		at := netip.AddrPortFrom(own, uint16(p.GetPublishedPort()))
		c := &musterv1.NetworkCheck{Kind: musterv1.NetworkCheck_PUBLISHED_PORT, Target: at.String(), NodeId: b.node.GetId()}
		start(func() {
			b.connect(ctx, b.host, c, at)
			b.note(c)
		})
	}
}

// tryPeer tries whether another node is reached inside the network. Its own address is the
// first of its first block, and it refuses connections.
func (b *prober) tryPeer(ctx context.Context, peer *networkv1.Peer) {
	port := peer.GetDataPathPort()
	if b.network.GetEncrypted() && peer.GetEncryptedPort() != 0 {
		port = peer.GetEncryptedPort()
	}
	c := &musterv1.NetworkCheck{
		Kind: musterv1.NetworkCheck_NODE, NodeId: peer.GetNodeId(), Target: net.JoinHostPort(peer.GetDataPathAddress(), fmt.Sprint(port)),
	}
	a, ok := b.firstOf(parsePrefixes(peer.GetBlocks()))
	if !ok {
		return
	}
	b.connect(ctx, b.space, c, netip.AddrPortFrom(a, closedPort))
	if c.Result == musterv1.NetworkCheck_REFUSED {
		c.Result, c.Message = musterv1.NetworkCheck_OK, ""
	}
	b.note(c)
}

// firstOf returns the first address of blocks that a node may have.
func (b *prober) firstOf(blocks []netip.Prefix) (netip.Addr, bool) {
	reserved := parseAddresses(b.network.GetReservedAddresses())
	subnets := parsePrefixes(b.network.GetSubnets())
	for _, block := range blocks {
		for a := block.Addr(); block.Contains(a); a = a.Next() {
			first := slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Addr() == a })
			if !first && !slices.Contains(reserved, a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// connect tries a connection from a namespace, and fills in how it went.
func (b *prober) connect(ctx context.Context, from *netns.Namespace, c *musterv1.NetworkCheck, to netip.AddrPort) {
	dialer := &net.Dialer{Timeout: b.timeout}
	if from == b.space {
		if i := slices.IndexFunc(b.own, func(a netip.Addr) bool { return a.Is4() == to.Addr().Is4() }); i >= 0 {
			dialer.LocalAddr = &net.TCPAddr{IP: b.own[i].AsSlice()}
		}
	}
	began := time.Now()
	err := from.Do(func() error {
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	b.judge(c, began, err)
}

// judge fills in how an attempt went.
func (b *prober) judge(c *musterv1.NetworkCheck, began time.Time, err error) {
	c.Took = durationpb.New(time.Since(began))
	var timeout net.Error
	switch {
	case err == nil:
		c.Result = musterv1.NetworkCheck_OK
	case errors.Is(err, unix.ECONNREFUSED):
		c.Result, c.Message = musterv1.NetworkCheck_REFUSED, "the connection was refused"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		c.Result, c.Message = musterv1.NetworkCheck_FAILED, "there is no route to it"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		c.Result, c.Message = musterv1.NetworkCheck_NO_ANSWER, fmt.Sprintf("no answer within %s", b.timeout)
	default:
		c.Result, c.Message = musterv1.NetworkCheck_FAILED, err.Error()
	}
}

// tryName asks the name server for the service, as the task does.
func (b *prober) tryName(ctx context.Context) {
	c := &musterv1.NetworkCheck{Kind: musterv1.NetworkCheck_NAME, Target: b.service.GetName()}
	defer b.note(c)
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = b.space.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(link.Gateway.String(), "53"))
			return err
		})
		return conn, err
	}}
	began := time.Now()
	got, err := resolver.LookupNetIP(ctx, "ip", b.service.GetName()+".")
	b.judge(c, began, err)
	var failure *net.DNSError
	if errors.As(err, &failure) && failure.IsNotFound {
		c.Result, c.Message = musterv1.NetworkCheck_FAILED, "the name server does not know the name"
	}
	want := parseAddresses(b.service.GetVirtualIps())
	if len(want) == 0 {
		for _, one := range b.backends {
			want = append(want, parseAddresses(one.GetAddresses())...)
		}
	}
	for i, a := range got {
		got[i] = a.Unmap()
	}
	if err == nil && !slices.ContainsFunc(want, func(a netip.Addr) bool { return slices.Contains(got, a) }) {
		c.Result, c.Message = musterv1.NetworkCheck_FAILED, fmt.Sprintf("the name server answers with %v, want %v", got, want)
	}
}

func (b *prober) note(c *musterv1.NetworkCheck) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.checks = append(b.checks, c)
}
