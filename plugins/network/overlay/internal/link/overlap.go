//go:build linux

package link

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// Overlap says which subnet of a network overlaps with a route of the host, or returns nil.
// Only hosts that the node reaches without a gateway count: routes through gateways often
// cover far more addresses than there are hosts.
func Overlap(host *netns.Namespace, subnets []netip.Prefix) (overlap, err error) {
	h, err := host.Link()
	if err != nil {
		return nil, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			to := prefixOf(r)
			if !to.IsValid() {
				continue
			}
			for _, s := range subnets {
				if !s.Overlaps(to) {
					continue
				}
				l, err := h.LinkByIndex(r.LinkIndex)
				if err != nil || strings.HasPrefix(l.Attrs().Name, "mu") {
					// The link has just ended, or is one of ours.
					continue
				}
				return fmt.Errorf("subnet %s overlaps with the route to %s over %s of this node, so tasks would not reach what is there: "+
					"give the network another subnet (muster network create --subnet), or the cluster another pool (muster cluster update --default-addr-pool)", s, to, l.Attrs().Name), nil
			}
		}
	}
	return nil, nil
}

// prefixOf returns where a route leads without a gateway. It is not valid for others.
func prefixOf(r netlink.Route) netip.Prefix {
	if r.Dst == nil || r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0 || r.Type != unix.RTN_UNICAST {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	if a = a.Unmap(); bits == 0 || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}
