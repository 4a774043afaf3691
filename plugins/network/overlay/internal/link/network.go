//go:build linux

package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
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
	if err := k.settings(s, n); err != nil {
		return err
	}
	h, err := s.Space.Link()
	if err != nil {
		return err
	}
	if err := k.ensureLoopback(s, h, n); err != nil {
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

// settings sets the kernel's settings of a network's namespace.
func (k *Kernel) settings(s *Sandbox, n *Network) error {
	// The order counts: a link takes the defaults when it is created.
	return k.sysctl(s.Space,
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
}

// ensureLoopback marks a namespace as the network's, and gives its loopback interface the
// addresses that tasks reach the node by.
func (k *Kernel) ensureLoopback(s *Sandbox, h *netlink.Handle, n *Network) error {
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
	return k.addresses(h, lo, own)
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

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
	return k.deleteLinks(space, func(l netlink.Link) bool { return l.Type() == "vxlan" || l.Type() == "veth" })
}

// deleteLinks deletes those links of a namespace that which selects. The kernel deletes the
// other end of a pair too, so that one may be gone already.
func (k *Kernel) deleteLinks(space *netns.Namespace, which func(netlink.Link) bool) error {
	h, links, err := linksOf(space)
	if err != nil {
		return err
	}
	for _, l := range links {
		if !which(l) {
			continue
		}
		err := k.Do("delete link "+l.Attrs().Name, func() error { return h.LinkDel(l) })
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// linksOf returns the links of a namespace.
func linksOf(space *netns.Namespace) (*netlink.Handle, []netlink.Link, error) {
	h, err := space.Link()
	if err != nil {
		return nil, nil, err
	}
	links, err := dump(func() ([]netlink.Link, error) { return h.LinkList() })
	return h, links, err
}
