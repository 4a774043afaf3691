//go:build linux

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// Network is what the links of a network's namespace must be.
type Network struct {
	Node, ID string
	Subnets  []netip.Prefix
	// Addresses are the node's own.
	Addresses []netip.Addr
	// VNI is 0 for networks without peers.
	VNI uint32
	// MTU is 0 if it follows from the way to the peers.
	MTU int
	// Internal networks have no way to the host.
	Internal bool
	// Local is where peers send to. Only its port is needed without peers.
	Local netip.AddrPort
	Peers []Peer
	// Tunnel is the namespace of the tunnel that an encrypted network's packets go through,
	// and TunnelPort the UDP port of VXLAN there. Without it they go through the host's.
	Tunnel     *netns.Namespace
	TunnelPort uint16
}

// local returns where the network's VXLAN device receives.
func (n *Network) local() netip.AddrPort {
	if n.Tunnel == nil {
		return n.Local
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), n.TunnelPort)
}

// remote returns where a peer's VXLAN device receives. It is not valid if the peer cannot
// be reached.
func (n *Network) remote(p Peer) netip.AddrPort {
	if n.Tunnel == nil || !p.Inner.IsValid() {
		return p.Remote
	}
	return netip.AddrPortFrom(p.Inner, n.TunnelPort)
}

// Peer is another node on a network.
type Peer struct {
	Node   string
	Remote netip.AddrPort
	// Inner is its address within the tunnel of encrypted networks.
	Inner  netip.Addr
	Blocks []netip.Prefix
}

// HasIPv6 reports whether one of the subnets is of IPv6.
func (n *Network) HasIPv6() bool {
	for _, s := range n.Subnets {
		if s.Addr().Is6() {
			return true
		}
	}
	return false
}

// Sandbox is a network's namespace with its way to the host.
type Sandbox struct {
	Space *netns.Namespace
	// MTU is that of the network's interfaces.
	MTU int
	// Uplinks are the namespace's addresses on the way to the host. There are none
	// without such a way.
	Uplinks []netip.Addr
	// Peers says which peers cannot be reached. The network works without them.
	Peers error
}

// Ensure makes a network's namespace have the links, addresses, routes and neighbours
// that it must have. Host is the namespace that the node's own addresses are in.
func (k *Kernel) Ensure(host *netns.Namespace, path string, n *Network) (*Sandbox, error) {
	var space *netns.Namespace
	present, err := k.Mounts.Open(path)
	if err == nil {
		space = present
	} else if err := k.Do("create namespace", func() (err error) {
		space, _, err = k.Mounts.Create(path)
		return err
	}); err != nil {
		return nil, err
	}
	s := &Sandbox{Space: space}
	if err := k.ensure(host, s, n); err != nil {
		return nil, errors.Join(err, space.Close())
	}
	return s, nil
}

func (k *Kernel) ensure(host *netns.Namespace, s *Sandbox, n *Network) error {
	// The order counts: a link takes the defaults when it is created.
	err := k.sysctl(s.Space,
		[2]string{"ipv4/ip_forward", "1"},
		[2]string{"ipv4/conf/all/rp_filter", "0"},
		[2]string{"ipv4/conf/default/rp_filter", "0"},
		[2]string{"ipv4/conf/all/send_redirects", "0"},
		[2]string{"ipv4/conf/default/send_redirects", "0"},
		[2]string{"ipv4/conf/all/accept_redirects", "0"},
		[2]string{"ipv4/conf/default/accept_redirects", "0"},
		// The name server needs no capability for its port.
		[2]string{"ipv4/ip_unprivileged_port_start", "0"},
		// Connections that one process has not taken yet go to its successor.
		[2]string{"ipv4/tcp_migrate_req", "?1"},
		[2]string{"ipv6/conf/default/disable_ipv6", "?" + bit(!n.HasIPv6())},
		[2]string{"ipv6/conf/all/forwarding", "?1"},
		[2]string{"ipv6/conf/default/accept_ra", "?0"},
		[2]string{"ipv6/conf/default/dad_transmits", "?0"},
	)
	if err != nil {
		return err
	}
	h, err := s.Space.Link()
	if err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := k.up(h, lo, 0); err != nil {
		return err
	}
	switch owner := lo.Attrs().Alias; owner {
	case n.ID:
	case "":
		if err := k.Do("name network of namespace", func() error { return h.LinkSetAlias(lo, n.ID) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("network %s has the namespace %s of this node, because both ids have the same hash: replace one of the networks", owner, s.Space.Path)
	}
	own := []netip.Prefix{hostPrefix(Gateway)}
	if n.HasIPv6() {
		own = append(own, hostPrefix(Local6))
	}
	for _, a := range n.Addresses {
		own = append(own, hostPrefix(a))
	}
	if err := k.addresses(h, lo, own); err != nil {
		return err
	}
	s.MTU = n.MTU
	if s.MTU == 0 {
		if s.MTU, err = overlayMTU(host, n); err != nil {
			return err
		}
	}
	vxlan, err := k.ensureVXLAN(host, s, h, n)
	if err != nil {
		return err
	}
	uplink, next, err := k.ensureUplink(host, s, h, n)
	if err != nil {
		return err
	}
	return k.ensureRoutes(s, h, n, vxlan, uplink, next)
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// What VXLAN and WireGuard add to a packet, over IPv4 and over IPv6.
const (
	vxlanOverhead, vxlanOverhead6         = 50, 70
	wireGuardOverhead, wireGuardOverhead6 = 60, 80
)

// TunnelMTU returns how large a packet may be within the tunnel of encrypted networks.
func TunnelMTU(host *netns.Namespace, n *Network) (int, error) {
	mtu, err := underlayMTU(host, n)
	if n.Local.Addr().Is6() {
		return mtu - wireGuardOverhead6, err
	}
	return mtu - wireGuardOverhead, err
}

// overlayMTU returns how large a packet may be that goes to the peers inside of VXLAN.
func overlayMTU(host *netns.Namespace, n *Network) (int, error) {
	switch {
	case n.VNI == 0 || !n.Local.IsValid():
		return usualMTU, nil
	case n.Tunnel != nil:
		mtu, err := TunnelMTU(host, n)
		return mtu - vxlanOverhead6, err
	}
	mtu, err := underlayMTU(host, n)
	if n.Local.Addr().Is6() {
		return mtu - vxlanOverhead6, err
	}
	return mtu - vxlanOverhead, err
}

const usualMTU = 1500

// underlayMTU returns how large a packet may be that goes to the peers as it is.
func underlayMTU(host *netns.Namespace, n *Network) (int, error) {
	h, err := host.Link()
	if err != nil {
		return 0, err
	}
	local := n.Local.Addr()
	remotes := []netip.Addr{local}
	for _, p := range n.Peers {
		if p.Remote.IsValid() {
			remotes = append(remotes, p.Remote.Addr())
		}
	}
	least := 0
	seen := make(map[int]bool)
	for i, a := range remotes {
		index, mtu, err := wayTo(h, a, i == 0)
		if err != nil || seen[index] && mtu == 0 {
			// A peer that cannot be reached now does not decide.
			continue
		}
		seen[index] = true
		if mtu == 0 {
			l, err := h.LinkByIndex(index)
			if err != nil {
				continue
			}
			mtu = l.Attrs().MTU
		}
		if least == 0 || mtu < least {
			least = mtu
		}
	}
	if least == 0 || least > 65535 {
		least = usualMTU
	}
	return least, nil
}

// wayTo returns the link that leads to an address, and the MTU of the route if it has
// one. For an own address it is the link that has it.
func wayTo(h *netlink.Handle, a netip.Addr, own bool) (index, mtu int, err error) {
	if own {
		all, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, family(a)) })
		if err != nil {
			return 0, 0, err
		}
		for _, have := range all {
			if addrOf(have.IP) == a {
				return have.LinkIndex, 0, nil
			}
		}
		return 0, 0, fmt.Errorf("no interface has address %s", a)
	}
	routes, err := h.RouteGet(a.AsSlice())
	if err != nil {
		return 0, 0, err
	}
	if len(routes) == 0 {
		return 0, 0, fmt.Errorf("no route to %s", a)
	}
	return routes[0].LinkIndex, routes[0].MTU, nil
}

// ensureVXLAN returns the network's VXLAN device, or nil for networks without.
func (k *Kernel) ensureVXLAN(host *netns.Namespace, s *Sandbox, h *netlink.Handle, n *Network) (netlink.Link, error) {
	if n.VNI == 0 {
		return nil, k.remove(h, Overlay)
	}
	mac, local := PeerMAC(n.Node), n.local()
	l, err := find(h, Overlay)
	if err != nil {
		return nil, err
	}
	if have, ok := l.(*netlink.Vxlan); ok {
		inTunnel, err := n.inTunnel(h, have)
		if err != nil {
			return nil, err
		}
		if inTunnel && have.VxlanId == int(n.VNI) && have.Port == int(local.Port()) && sourceOf(have) == local.Addr() && have.HardwareAddr.String() == mac.String() {
			return l, k.startVXLAN(s, h, l)
		}
		if err := k.remove(h, Overlay); err != nil {
			return nil, err
		}
	}
	if n.Tunnel != nil {
		host = n.Tunnel
	}
	outer, err := host.Link()
	if err != nil {
		return nil, err
	}
	// The device is created through the host's namespace or the tunnel's, so that its UDP
	// socket is there, and right in the network's.
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = Overlay, s.MTU, mac
	attributes.Namespace = netlink.NsFd(s.Space.FD())
	device := &netlink.Vxlan{LinkAttrs: attributes, VxlanId: int(n.VNI), Port: int(local.Port()), SrcAddr: local.Addr().AsSlice(), NoAge: true}
	if local.Addr().Is6() {
		device.UDP6ZeroCSumRx, device.UDP6ZeroCSumTx = true, true
	}
	err = k.Do("create VXLAN device", func() error { return create(outer, device) })
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("another worker or program on this machine uses UDP port %d for VXLAN: give each worker its own --data-path-port", n.Local.Port())
	}
	if err != nil {
		return nil, err
	}
	if l, err = h.LinkByName(Overlay); err != nil {
		return nil, err
	}
	return l, k.startVXLAN(s, h, l)
}

// inTunnel reports whether the socket of a VXLAN device is in the tunnel's namespace, if it
// must be there. The namespace may have been made again.
func (n *Network) inTunnel(h *netlink.Handle, device *netlink.Vxlan) (bool, error) {
	if n.Tunnel == nil {
		return true, nil
	}
	id, err := h.GetNetNsIdByFd(n.Tunnel.FD())
	return id >= 0 && id == device.NetNsID, err
}

// sourceOf returns the address that a VXLAN device sends from. The kernel does not name
// the unspecified one.
func sourceOf(l *netlink.Vxlan) netip.Addr {
	if a := addrOf(l.SrcAddr); a.IsValid() {
		return a
	}
	return netip.IPv6Unspecified()
}

// startVXLAN sets a VXLAN device up. One that is down may lack settings.
func (k *Kernel) startVXLAN(s *Sandbox, h *netlink.Handle, l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := k.sendToSelf(s, l); err != nil {
			return err
		}
	}
	return k.up(h, l, s.MTU)
}

// vxlanLocalBypass is IFLA_VXLAN_LOCALBYPASS.
const vxlanLocalBypass = 31

// sendToSelf makes a VXLAN device send packets for peers on the same machine as it sends
// others. The kernel would hand them to the other device without forgetting how it routed
// them in this namespace, so that they do not arrive. Kernels before 6.4 cannot do
// otherwise.
func (k *Kernel) sendToSelf(s *Sandbox, l netlink.Link) error {
	return s.Space.Do(func() error {
		r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		message := nl.NewIfInfomsg(unix.AF_UNSPEC)
		message.Index = int32(l.Attrs().Index)
		r.AddData(message)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vxlanLocalBypass, []byte{0})
		r.AddData(info)
		return k.Do("send to own machine", func() error {
			_, err := r.Execute(unix.NETLINK_ROUTE, 0)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
				// An older kernel; nodes on machines of their own do not need it.
				return nil
			}
			return err
		})
	})
}

// create creates a link that may be born in another namespace than the handle's.
func create(h *netlink.Handle, l netlink.Link) error { return h.LinkAdd(l) }

// pool4 is where the addresses between networks' namespaces and the host come from.
var pool4 = netip.MustParsePrefix("169.254.64.0/18")

// UplinkPool4 is the range of addresses between networks' namespaces and the host.
func UplinkPool4() netip.Prefix { return pool4 }

// UplinkPool6 is the same in IPv6.
func UplinkPool6() netip.Prefix { return netip.MustParsePrefix("fd6d:7573:7466::/64") }

// ensureUplink returns the network's end of its way to the host, or nil for internal
// networks, and the host's addresses on it.
func (k *Kernel) ensureUplink(host *netns.Namespace, s *Sandbox, h *netlink.Handle, n *Network) (netlink.Link, []netip.Addr, error) {
	outer, err := host.Link()
	if err != nil {
		return nil, nil, err
	}
	name := HostLink(n.Node, n.ID)
	if n.Internal {
		return nil, nil, k.remove(h, Uplink)
	}
	far, err := find(outer, name)
	if err != nil {
		return nil, nil, err
	}
	near, err := find(h, Uplink)
	if err != nil {
		return nil, nil, err
	}
	if far == nil || near == nil || far.Attrs().ParentIndex != near.Attrs().Index {
		if err := errors.Join(k.remove(outer, name), k.remove(h, Uplink)); err != nil {
			return nil, nil, err
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = Uplink, 1500
		pair := &netlink.Veth{LinkAttrs: attributes, PeerName: name, PeerMTU: 1500, PeerNamespace: netlink.NsFd(host.FD())}
		if err := k.Do("create way to the host", func() error { return create(h, pair) }); err != nil {
			return nil, nil, err
		}
		if far, err = outer.LinkByName(name); err != nil {
			return nil, nil, err
		}
		if near, err = h.LinkByName(Uplink); err != nil {
			return nil, nil, err
		}
	}
	err = k.sysctl(host,
		[2]string{"ipv4/conf/" + name + "/forwarding", "1"},
		[2]string{"ipv4/conf/" + name + "/rp_filter", "2"},
		// For connections from the node itself to 127.0.0.1 and a published port. The
		// ruleset keeps others from using it.
		[2]string{"ipv4/conf/" + name + "/route_localnet", "1"},
		[2]string{"ipv6/conf/" + name + "/disable_ipv6", "?" + bit(!n.HasIPv6())},
		[2]string{"ipv6/conf/" + name + "/accept_ra", "?0"},
	)
	if err != nil {
		return nil, nil, err
	}
	outside, inside, err := k.uplinkAddresses(outer, far, n)
	if err != nil {
		return nil, nil, err
	}
	for _, end := range []struct {
		h         *netlink.Handle
		l         netlink.Link
		addresses []netip.Prefix
	}{{outer, far, outside}, {h, near, inside}} {
		if err := k.addresses(end.h, end.l, end.addresses); err != nil {
			return nil, nil, err
		}
		if err := k.up(end.h, end.l, 1500); err != nil {
			return nil, nil, err
		}
	}
	var next []netip.Addr
	for i := range outside {
		next = append(next, outside[i].Addr())
		s.Uplinks = append(s.Uplinks, inside[i].Addr())
	}
	return near, next, nil
}

// uplinkAddresses returns the addresses of both ends of a way to the host: those that the
// host's end has, or unused ones.
func (k *Kernel) uplinkAddresses(outer *netlink.Handle, far netlink.Link, n *Network) (outside, inside []netip.Prefix, err error) {
	all, err := dump(func() ([]netlink.Addr, error) { return outer.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, nil, err
	}
	used := make(map[netip.Addr]bool)
	var first netip.Addr
	for _, a := range all {
		address := addrOf(a.IP)
		if !pool4.Contains(address) {
			continue
		}
		if a.LinkIndex == far.Attrs().Index && a.Mask.String() == net.CIDRMask(31, 32).String() {
			first = address
			break
		}
		used[address] = true
	}
	if !first.IsValid() {
		seed := sum(n.Node, n.ID)
		const pairs = 1 << 13
		start := (int(seed[0])<<8 | int(seed[1])) % pairs
		base := pool4.Addr().As4()
		for i := range pairs {
			offset := (start + i) % pairs * 2
			a := netip.AddrFrom4([4]byte{base[0], base[1], base[2] + byte(offset>>8), byte(offset)})
			if !used[a] {
				first = a
				break
			}
		}
		if !first.IsValid() {
			return nil, nil, fmt.Errorf("no unused address pair in %s for the way to the host", pool4)
		}
	}
	outside = append(outside, netip.PrefixFrom(first, 31))
	inside = append(inside, netip.PrefixFrom(first.Next(), 31))
	if n.HasIPv6() {
		b := UplinkPool6().Addr().As16()
		copy(b[8:], sum(n.Node, n.ID)[:8])
		b[15] &^= 1
		first := netip.AddrFrom16(b)
		outside = append(outside, netip.PrefixFrom(first, 127))
		inside = append(inside, netip.PrefixFrom(first.Next(), 127))
	}
	return outside, inside, nil
}

// ensureRoutes sets the routes of a network's namespace but for those to tasks.
func (k *Kernel) ensureRoutes(s *Sandbox, h *netlink.Handle, n *Network, vxlan, uplink netlink.Link, next []netip.Addr) error {
	var want []route
	var errs []error
	for _, subnet := range n.Subnets {
		want = append(want, route{to: subnet.Masked(), kind: unix.RTN_UNREACHABLE})
	}
	uplinkIndex, vxlanIndex := -1, -1
	if uplink != nil {
		uplinkIndex = uplink.Attrs().Index
		for _, a := range next {
			to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if a.Is6() {
				to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			want = append(want, route{to: to, via: a, link: uplinkIndex, kind: unix.RTN_UNICAST})
		}
	}
	if vxlan != nil {
		vxlanIndex = vxlan.Attrs().Index
		neighbours := make(map[netip.Addr]string)
		tunnels := make(map[string]tunnel)
		// Nodes choose their ids: one must not get what is sent to another.
		holders := map[string]int{PeerMAC(n.Node).String(): 1}
		for _, p := range n.Peers {
			holders[PeerMAC(p.Node).String()]++
		}
		for _, p := range n.Peers {
			if !p.Remote.IsValid() {
				continue
			}
			remote := n.remote(p)
			if remote.Addr().Is4() != n.local().Addr().Is4() {
				// A VXLAN device sends over the IP version of its own address only.
				s.Peers = errors.Join(s.Peers, fmt.Errorf("node %s cannot be reached: its data path address %s and this node's %s are of different IP versions: set --data-path-addr on one of them", p.Node, p.Remote.Addr(), n.Local.Addr()))
				continue
			}
			mac := PeerMAC(p.Node).String()
			if holders[mac] > 1 {
				s.Peers = errors.Join(s.Peers, fmt.Errorf("node %s cannot be reached: another node has the same hardware address %s on the network: give one of them another node id", p.Node, mac))
				continue
			}
			tunnels[mac] = tunnel{remote.Addr(), remote.Port()}
			for _, b := range p.Blocks {
				// A block's first address names the node that has the block: nothing else
				// on the network has it as its next hop.
				first := b.Masked().Addr()
				neighbours[first] = mac
				want = append(want, route{to: b.Masked(), via: first, link: vxlanIndex, kind: unix.RTN_UNICAST})
			}
		}
		// One peer's entry that the kernel refuses must not keep the others' from being set.
		errs = append(errs,
			k.neighbours(h, vxlanIndex, neighbours),
			s.Space.Do(func() error { return k.tunnels(vxlanIndex, n.local().Port(), tunnels) }))
	}
	err := k.routes(h, want, func(r route) bool {
		return r.link == uplinkIndex || r.link == vxlanIndex || r.kind == unix.RTN_UNREACHABLE
	})
	return errors.Join(append(errs, err)...)
}

// Remove removes a network's namespace and its way to the host.
func (k *Kernel) Remove(host *netns.Namespace, path, node, network string) error {
	outer, err := host.Link()
	if err != nil {
		return err
	}
	if err := k.remove(outer, HostLink(node, network)); err != nil {
		return err
	}
	if other, err := k.ownedByOther(path, network); other || err != nil {
		return err
	}
	return k.RemovePath(path)
}

// ownedByOther reports whether a namespace belongs to another network than the given one.
func (k *Kernel) ownedByOther(path, network string) (bool, error) {
	space, err := k.Mounts.Open(path)
	if err != nil {
		return false, nil
	}
	h, err := space.Link()
	if err != nil {
		return false, errors.Join(err, space.Close())
	}
	lo, err := find(h, "lo")
	other := lo != nil && lo.Attrs().Alias != "" && lo.Attrs().Alias != network
	return other, errors.Join(err, space.Close())
}

// RemovePath removes a network's namespace by its path, with all links in it.
func (k *Kernel) RemovePath(path string) error {
	space, err := k.Mounts.Open(path)
	if err == nil {
		// The kernel removes a namespace in its own time. The VXLAN device must be gone
		// when this returns: its network identifier may be in use again at once.
		if err := errors.Join(k.clear(space), space.Close()); err != nil {
			return err
		}
	}
	return k.Do("remove namespace", func() error { return k.Mounts.Remove(path) })
}

func (k *Kernel) clear(space *netns.Namespace) error {
	h, err := space.Link()
	if err != nil {
		return err
	}
	links, err := dump(func() ([]netlink.Link, error) { return h.LinkList() })
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Type() != "vxlan" && l.Type() != "veth" {
			continue
		}
		err := k.Do("delete link "+l.Attrs().Name, func() error { return h.LinkDel(l) })
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}
