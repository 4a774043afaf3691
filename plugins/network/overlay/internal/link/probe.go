//go:build linux

package link

import (
	"github.com/vishvananda/netlink"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// TryVeth creates a pair of links in a namespace.
func TryVeth(space *netns.Namespace) error {
	return try(space, func(a netlink.LinkAttrs) netlink.Link { return &netlink.Veth{LinkAttrs: a, PeerName: "peer"} })
}

// TryVXLAN creates a VXLAN device in a namespace.
func TryVXLAN(space *netns.Namespace) error {
	return try(space, func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vxlan{LinkAttrs: a, VxlanId: 1, Port: 4789} })
}

func try(space *netns.Namespace, make func(netlink.LinkAttrs) netlink.Link) error {
	h, err := space.Link()
	if err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "try"
	l := make(attributes)
	if err := h.LinkAdd(l); err != nil {
		return err
	}
	return h.LinkDel(l)
}
