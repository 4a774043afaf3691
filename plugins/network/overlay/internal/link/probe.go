//go:build linux

package link

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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

// TryWireGuard creates a WireGuard device of the kernel in a namespace.
func TryWireGuard(space *netns.Namespace) error {
	return try(space, func(a netlink.LinkAttrs) netlink.Link { return &netlink.Wireguard{LinkAttrs: a} })
}

// TryTUN creates a TUN device in a namespace.
func TryTUN(space *netns.Namespace) error {
	return space.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("try")
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		return errors.Join(err, unix.Close(fd))
	})
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
