//go:build linux

package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/flows"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// network is one network: what it must be, and what was made of it.
type network struct {
	plugin *Plugin
	id     string
	// internal says that no way leads out of the network, and ingress that published ports
	// lead into it. They are read without mu.
	internal, ingress atomic.Bool

	// mu guards what follows, and is held during calls to the kernel that concern the
	// network.
	mu       sync.Mutex
	spec     *networkv1.Network
	node     *networkv1.Node
	peers    map[string]*networkv1.Peer
	services map[string]*service
	// tasks are those with an interface on the network.
	tasks map[string]*task

	kernel  *link.Kernel
	sandbox *link.Sandbox
	// tables are those of IPv4 and IPv6. One is nil if the network has no subnet of it.
	tables [2]*ruleset.Table
	// ready is set once links and rules were as they must be. No task is attached before.
	ready bool
	// unreachable is what was logged last about peers.
	unreachable string
	// overlap says which route of the node the network overlaps with. It is nil if there is none.
	overlap error
}

// service is a service on a network.
type service struct {
	spec     *networkv1.Service
	backends map[string]*networkv1.Backend
}

func newNetwork(p *Plugin, spec *networkv1.Network) *network {
	return &network{
		plugin: p, id: spec.GetId(), spec: spec, kernel: p.kernel(),
		peers: make(map[string]*networkv1.Peer), services: make(map[string]*service), tasks: make(map[string]*task),
	}
}

func (n *network) close() error {
	var errs []error
	for _, t := range n.tables {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	n.tables = [2]*ruleset.Table{}
	if n.sandbox != nil {
		errs = append(errs, n.sandbox.Space.Close())
		n.sandbox = nil
	}
	return errors.Join(errs...)
}

// own returns the node's own addresses on the network.
func (n *network) own() []netip.Addr { return parseAddresses(n.spec.GetNodeAddresses()) }

func (n *network) subnets() []netip.Prefix { return parsePrefixes(n.spec.GetSubnets()) }

// shape returns what the network's links must be.
func (n *network) shape() *link.Network {
	s := &link.Network{
		Node: n.node.GetId(), ID: n.id, Subnets: n.subnets(), Addresses: n.own(),
		MTU: int(n.spec.GetMtu()), Internal: n.spec.GetInternal(),
	}
	address, err := netip.ParseAddr(n.node.GetDataPathAddress())
	if err != nil {
		return s
	}
	s.Local = netip.AddrPortFrom(address.Unmap(), uint16(n.node.GetDataPathPort()))
	if n.spec.GetDriver() == DriverBridge {
		return s
	}
	s.VNI = n.spec.GetVni()
	for _, id := range slices.Sorted(maps.Keys(n.peers)) {
		p := n.peers[id]
		remote, err := netip.ParseAddr(p.GetDataPathAddress())
		if err != nil {
			continue
		}
		s.Peers = append(s.Peers, link.Peer{
			Node: id, Blocks: parsePrefixes(p.GetBlocks()),
			Remote: netip.AddrPortFrom(remote.Unmap(), uint16(p.GetDataPathPort())),
		})
	}
	return s
}

// ensureLinks makes the network's namespace and its links be as they must, and opens the
// tables if the namespace is another one than before.
func (n *network) ensureLinks() error {
	path, shape := n.plugin.pathOf(n.node.GetId(), n.id), n.shape()
	unreachable, err := n.encrypt(shape)
	if err != nil {
		return err
	}
	s, err := n.kernel.Ensure(n.plugin.host, path, shape)
	if err != nil {
		return err
	}
	n.plugin.edge.putTunnel(n.node.GetId(), shape)
	n.reportPeers(errors.Join(unreachable, s.Peers))
	if n.sandbox != nil && n.sandbox.Space.Same(s.Space) {
		err := s.Space.Close()
		n.sandbox.MTU, n.sandbox.Uplinks = s.MTU, s.Uplinks
		return errors.Join(err, n.openTables())
	}
	if err := n.close(); err != nil {
		return err
	}
	n.sandbox = s
	return n.openTables()
}

// reportPeers logs which peers cannot be reached, whenever that changes. It is no error of
// the network: that would keep tasks from it.
func (n *network) reportPeers(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	if why != n.unreachable && err != nil {
		n.plugin.log.Error("some nodes of a network cannot be reached", zap.String("network", n.id), zap.Error(err))
	}
	n.unreachable = why
}

func (n *network) openTables() error {
	want := [2]bool{}
	for _, s := range n.subnets() {
		want[index(s.Addr().Is6())] = true
	}
	for i, six := range []bool{false, true} {
		if want[i] == (n.tables[i] != nil) {
			continue
		}
		t := n.tables[i]
		if t == nil {
			t = ruleset.New(ruleset.Sandbox(six, n.spec.GetIngress()), n.sandbox.Space.FD(), func(name string, call func() error) error { return n.kernel.Do(name, call) })
		}
		if !want[i] {
			n.tables[i] = nil
			if err := errors.Join(t.Delete(), t.Close()); err != nil {
				return err
			}
			continue
		}
		n.tables[i] = t
		n.putAll(t, six)
	}
	return nil
}

func index(six bool) int {
	if six {
		return 1
	}
	return 0
}

// eachTable calls a function for the tables of the network.
func (n *network) eachTable(call func(six bool, t *ruleset.Table) error) error {
	var errs []error
	for i, t := range n.tables {
		if t != nil {
			errs = append(errs, call(i == 1, t))
		}
	}
	return errors.Join(errs...)
}

// putAll says everything that a table must hold.
func (n *network) putAll(t *ruleset.Table, six bool) {
	n.putNode(t, six)
	known := map[string]bool{"node": true}
	for id, s := range n.services {
		n.putService(t, six, id, s)
		known["service "+id] = true
	}
	for id, task := range n.tasks {
		n.putTask(t, six, task)
		known["task "+id] = true
	}
	for _, owner := range t.Owners() {
		if !known[owner] {
			t.Put(owner, nil)
		}
	}
}

func (n *network) putNode(t *ruleset.Table, six bool) { t.Put("node", ruleset.Node(six, n.own())) }

func (n *network) putService(t *ruleset.Table, six bool, id string, s *service) {
	if s == nil {
		t.Put("service "+id, nil)
		return
	}
	all, local := n.addresses(s)
	reachable := all
	if n.spec.GetIngress() {
		// Only published ports lead to tasks.
		reachable = nil
	}
	elements := ruleset.Service(six, parseAddresses(s.spec.GetVirtualIps()), reachable)
	for _, p := range n.meshPorts(s) {
		backends := all
		if p.KeepSource {
			backends = local
		}
		elements = append(elements, ruleset.Published(six, p, backends)...)
	}
	t.Put("service "+id, elements)
}

// addresses returns the addresses of a service's backends, and of those on this node.
func (n *network) addresses(s *service) (all, local []netip.Addr) {
	for _, id := range slices.Sorted(maps.Keys(s.backends)) {
		b := s.backends[id]
		own := parseAddresses(b.GetAddresses())
		all = append(all, own...)
		if b.GetNodeId() == n.node.GetId() {
			local = append(local, own...)
		}
	}
	return all, local
}

// hasLocal reports whether one of a service's backends is on this node.
func (n *network) hasLocal(s *service) bool {
	for _, b := range s.backends {
		if b.GetNodeId() == n.node.GetId() {
			return true
		}
	}
	return false
}

// meshPorts returns the ports of a service that every node answers.
func (n *network) meshPorts(s *service) []ruleset.Port {
	if !n.spec.GetIngress() {
		return nil
	}
	var ports []ruleset.Port
	for _, p := range s.spec.GetPorts() {
		if p.GetPublishMode() == musterv1.PortConfig_HOST || p.GetPublishedPort() == 0 {
			continue
		}
		ports = append(ports, ruleset.Port{
			Protocol: protocolNumber(p.GetProtocol()), Published: uint16(p.GetPublishedPort()), Target: uint16(p.GetTargetPort()),
			KeepSource: p.GetExternalTraffic() == musterv1.PortConfig_LOCAL, Relay: p.GetProxyProtocol(),
		})
	}
	return ports
}

func protocolNumber(p musterv1.PortConfig_Protocol) byte {
	switch p {
	case musterv1.PortConfig_UDP:
		return unix.IPPROTO_UDP
	case musterv1.PortConfig_SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

func (n *network) putTask(t *ruleset.Table, six bool, task *task) {
	own := task.addressesOn(n.id)
	elements := ruleset.Self(six, own, n.own())
	if n.spec.GetIngress() && n.plugin.reachesOutside(task) {
		elements = append(elements, ruleset.Outgoing(six, own)...)
	}
	if n.plugin.publishes(task, n.id) {
		for _, p := range task.request.GetPorts() {
			elements = append(elements, ruleset.Published(six, ruleset.Port{
				Protocol: protocolNumber(p.GetProtocol()), Published: uint16(p.GetPublishedPort()), Target: uint16(p.GetTargetPort()), KeepSource: true,
			}, own)...)
		}
	}
	t.Put("task "+task.id, elements)
}

// published returns all ports that lead from the host into the network.
func (n *network) published() []ruleset.Port {
	var ports []ruleset.Port
	for _, s := range n.services {
		for _, p := range n.meshPorts(s) {
			// Another worker on this machine may have tasks that answer.
			if !p.KeepSource || n.hasLocal(s) {
				ports = append(ports, p)
			}
		}
	}
	for _, t := range n.tasks {
		if !n.plugin.publishes(t, n.id) {
			continue
		}
		for _, p := range t.request.GetPorts() {
			ports = append(ports, ruleset.Port{Protocol: protocolNumber(p.GetProtocol()), Published: uint16(p.GetPublishedPort())})
		}
	}
	slices.SortFunc(ports, func(a, b ruleset.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Published, b.Published))
	})
	return slices.CompactFunc(ports, func(a, b ruleset.Port) bool { return a.Protocol == b.Protocol && a.Published == b.Published })
}

// ensureAll makes everything in the kernel that belongs to the network be as it must. It
// reads all of it.
func (n *network) ensureAll() error {
	if err := n.check(); err != nil {
		return err
	}
	if err := n.ensureLinks(); err != nil {
		return err
	}
	var conflicts []error
	err := n.eachTable(func(six bool, t *ruleset.Table) error {
		n.putAll(t, six)
		err := t.Verify()
		for id := range n.services {
			conflicts = append(conflicts, networksdk.Warning(t.Conflict("service "+id)))
		}
		return err
	})
	n.ready = n.ready || err == nil
	return errors.Join(append(conflicts, err, n.plugin.edge.update(n))...)
}

// check refuses networks that the plugin cannot serve.
func (n *network) check() error {
	switch driver := n.spec.GetDriver(); {
	case driver != DriverOverlay && driver != DriverBridge:
		return fmt.Errorf("the plugin does not serve driver %q: want %s or %s", driver, DriverOverlay, DriverBridge)
	case n.spec.GetEncrypted() && driver == DriverOverlay:
		if err := n.plugin.cannotEncrypt(); err != nil {
			return fmt.Errorf("the node cannot encrypt networks: %w", err)
		}
	}
	if n.overlap == nil || n.sandbox != nil {
		return nil
	}
	// A network that tasks are on already stays.
	space, err := n.plugin.mounts().Open(n.plugin.pathOf(n.node.GetId(), n.id))
	if err != nil {
		return n.overlap
	}
	return space.Close()
}

// ensureServices changes what concerns some services.
func (n *network) ensureServices(ids map[string]bool) error {
	err := n.eachTable(func(six bool, t *ruleset.Table) error {
		for id := range ids {
			n.putService(t, six, id, n.services[id])
		}
		err := t.Commit()
		for id := range ids {
			err = errors.Join(err, networksdk.Warning(t.Conflict("service "+id)))
		}
		return err
	})
	return errors.Join(err, n.plugin.edge.update(n))
}

// staleFlows returns a function that deletes connections of UDP to tasks that are no longer
// backends. The function must be called without n.mu: a task can have so many connections
// that listing them takes seconds.
func (n *network) staleFlows() func() error {
	none := func() error { return nil }
	if n.sandbox == nil {
		return none
	}
	// To list connections takes the kernel 10 ms and more, whatever namespace they are in.
	entries := uint64(0)
	err := n.sandbox.Space.Do(func() error {
		entries, _ = flows.Count()
		return nil
	})
	if err != nil {
		return func() error { return err }
	}
	if entries == 0 {
		return none
	}
	path := n.plugin.pathOf(n.node.GetId(), n.id)
	uplinks := n.sandbox.Uplinks
	leads := n.leads()
	return func() error {
		space, err := n.plugin.mounts().Open(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNone) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() { _ = space.Close() }()
		_, err = flows.DeleteUDP(space.FD(), func(original netip.AddrPort, backend netip.Addr) bool {
			if slices.Contains(uplinks, original.Addr()) {
				return !leads.published[original.Port()][backend]
			}
			now, ok := leads.virtual[original.Addr()]
			return ok && !now[backend]
		})
		return err
	}
}

// leads says which backends connections of UDP may lead to.
type leads struct {
	// virtual holds those of virtual addresses, on any port.
	virtual map[netip.Addr]map[netip.Addr]bool
	// published holds those of published ports, at the addresses of the way to the host.
	published map[uint16]map[netip.Addr]bool
}

// leads returns the backends that there are now.
func (n *network) leads() leads {
	l := leads{virtual: make(map[netip.Addr]map[netip.Addr]bool), published: make(map[uint16]map[netip.Addr]bool)}
	set := func(addresses []netip.Addr) map[netip.Addr]bool {
		all := make(map[netip.Addr]bool, len(addresses))
		for _, a := range addresses {
			all[a] = true
		}
		return all
	}
	for _, s := range n.services {
		all, local := n.addresses(s)
		for _, v := range parseAddresses(s.spec.GetVirtualIps()) {
			l.virtual[v] = set(all)
		}
		for _, p := range n.meshPorts(s) {
			if p.Protocol == unix.IPPROTO_UDP && p.KeepSource {
				l.published[p.Published] = set(local)
			} else if p.Protocol == unix.IPPROTO_UDP {
				l.published[p.Published] = set(all)
			}
		}
	}
	for _, t := range n.tasks {
		if !n.plugin.publishes(t, n.id) {
			continue
		}
		for _, p := range t.request.GetPorts() {
			if p.GetProtocol() == musterv1.PortConfig_UDP {
				l.published[uint16(p.GetPublishedPort())] = set(t.addressesOn(n.id))
			}
		}
	}
	return l
}

// remove removes everything in the kernel that belongs to the network.
func (n *network) remove() error {
	n.services, n.tasks = make(map[string]*service), make(map[string]*task)
	err := n.plugin.edge.drop(n.id)
	err = errors.Join(err, n.close(), n.kernel.Remove(n.plugin.host, n.plugin.pathOf(n.node.GetId(), n.id), n.node.GetId(), n.id))
	return errors.Join(err, n.plugin.tunnel.Drop(n.id))
}

// removePath removes a namespace that no network has.
func (p *Plugin) removePath(path string) error {
	if err := p.kernel().RemovePath(path); err != nil && !errors.Is(err, netns.ErrNone) {
		return fmt.Errorf("remove namespace of a network that is gone: %w", err)
	}
	return nil
}
