//go:build linux

package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
		reach := n.reachPeers(vxlanIndex)
		want = append(want, reach.routes...)
		s.Peers = reach.failed
		// One peer's entry that the kernel refuses must not keep the others' from being set.
		errs = append(errs,
			k.neighbours(h, vxlanIndex, reach.neighbours),
			s.Space.Do(func() error { return k.tunnels(vxlanIndex, n.local().Port(), reach.tunnels) }))
	}
	err := k.routes(h, want, func(r route) bool {
		return r.link == uplinkIndex || r.link == vxlanIndex || r.kind == unix.RTN_UNREACHABLE
	})
	return errors.Join(append(errs, err)...)
}

// reach is what leads to the peers of a network.
type reach struct {
	routes []route
	// neighbours are the hardware addresses of next hops.
	neighbours map[netip.Addr]string
	// tunnels are where packets for a hardware address are sent.
	tunnels map[string]tunnel
	// failed says which peers cannot be reached.
	failed error
}

// reachPeers returns what leads to the network's peers through a VXLAN device.
func (n *Network) reachPeers(vxlan int) *reach {
	r := &reach{neighbours: make(map[netip.Addr]string), tunnels: make(map[string]tunnel)}
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
			r.failed = errors.Join(r.failed, fmt.Errorf("node %s cannot be reached: its data path address %s and this node's %s are of different IP versions: set --data-path-addr on one of them", p.Node, p.Remote.Addr(), n.Local.Addr()))
			continue
		}
		mac := PeerMAC(p.Node).String()
		if holders[mac] > 1 {
			r.failed = errors.Join(r.failed, fmt.Errorf("node %s cannot be reached: another node has the same hardware address %s on the network: give one of them another node id", p.Node, mac))
			continue
		}
		r.tunnels[mac] = tunnel{remote.Addr(), remote.Port()}
		for _, b := range p.Blocks {
			// A block's first address names the node that has the block: nothing else
			// on the network has it as its next hop.
			first := b.Masked().Addr()
			r.neighbours[first] = mac
			r.routes = append(r.routes, route{to: b.Masked(), via: first, link: vxlan, kind: unix.RTN_UNICAST})
		}
	}
	return r
}
