//go:build linux

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

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
