//go:build linux

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

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
	far, near, err := k.ensureUplinkPair(host, h, outer, name)
	if err != nil {
		return nil, nil, err
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

// ensureUplinkPair returns the two ends of a network's way to the host: the host's, which
// has a name of the network's own, and the network's.
func (k *Kernel) ensureUplinkPair(host *netns.Namespace, h, outer *netlink.Handle, name string) (far, near netlink.Link, err error) {
	far, err = find(outer, name)
	if err != nil {
		return nil, nil, err
	}
	near, err = find(h, Uplink)
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
		if err := k.Do("create way to the host", func() error { return h.LinkAdd(pair) }); err != nil {
			return nil, nil, err
		}
		if far, err = outer.LinkByName(name); err != nil {
			return nil, nil, err
		}
		if near, err = h.LinkByName(Uplink); err != nil {
			return nil, nil, err
		}
	}
	return far, near, nil
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
		if first, err = unusedPair(n, used); err != nil {
			return nil, nil, err
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

// unusedPair returns the first of two addresses that no network of the node uses. A
// network mostly gets the same ones.
func unusedPair(n *Network, used map[netip.Addr]bool) (netip.Addr, error) {
	const pairs = 1 << 13
	seed := sum(n.Node, n.ID)
	start := (int(seed[0])<<8 | int(seed[1])) % pairs
	base := pool4.Addr().As4()
	for i := range pairs {
		offset := (start + i) % pairs * 2
		a := netip.AddrFrom4([4]byte{base[0], base[1], base[2] + byte(offset>>8), byte(offset)})
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no unused address pair in %s for the way to the host", pool4)
}
