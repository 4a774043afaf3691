//go:build linux

package link

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// TunnelPrefix begins the names of WireGuard devices. No other link of a node has it.
const TunnelPrefix = "mu-"

// TunnelLink returns the name of one of a node's two WireGuard devices. It is one of a kind
// on a machine: programs that configure devices in user space know them by name only.
func TunnelLink(node string, slot int) string {
	return TunnelPrefix + Short(node) + "-" + string(rune('0'+slot))
}

// EnsureTunnelSpace makes the namespace of a node's tunnel.
func (k *Kernel) EnsureTunnelSpace(path string) (*netns.Namespace, error) {
	space, err := k.Mounts.Open(path)
	if err != nil {
		err = k.Do("create namespace of tunnel", func() (err error) {
			space, _, err = k.Mounts.Create(path)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	err = k.sysctl(space,
		[2]string{"ipv6/conf/all/disable_ipv6", "0"},
		[2]string{"ipv6/conf/default/disable_ipv6", "0"},
		[2]string{"ipv6/conf/default/accept_ra", "0"},
		[2]string{"ipv6/conf/default/dad_transmits", "0"},
		[2]string{"ipv6/conf/all/forwarding", "0"},
	)
	if err != nil {
		return nil, errors.Join(err, space.Close())
	}
	return space, nil
}

// Kind returns the type of a link, or "" if there is none.
func Kind(space *netns.Namespace, name string) (string, error) {
	h, err := space.Link()
	if err != nil {
		return "", err
	}
	l, err := find(h, name)
	if err != nil || l == nil {
		return "", err
	}
	return l.Type(), nil
}

// CreateWireGuard creates a WireGuard device of the kernel in a namespace, with its UDP
// socket in the host's. It reports false if the kernel has no WireGuard.
func (k *Kernel) CreateWireGuard(host, space *netns.Namespace, name string) (bool, error) {
	outer, err := host.Link()
	if err != nil {
		return false, err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.Namespace = name, netlink.NsFd(space.FD())
	err = outer.LinkAdd(&netlink.Wireguard{LinkAttrs: attributes})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// TunnelLinks returns the names of the WireGuard devices in a tunnel's namespace.
func TunnelLinks(space *netns.Namespace) ([]string, error) {
	h, err := space.Link()
	if err != nil {
		return nil, err
	}
	links, err := dump(h.LinkList)
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, TunnelPrefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, err
}

// RemoveTunnelLink removes a WireGuard device, if it is there.
func (k *Kernel) RemoveTunnelLink(space *netns.Namespace, name string) error {
	h, err := space.Link()
	if err != nil {
		return err
	}
	return k.remove(h, name)
}

// EnsureTunnel gives the devices of a tunnel their addresses, sets them up, and makes the
// routes to peers lead through the given devices.
func (k *Kernel) EnsureTunnel(space *netns.Namespace, mtu int, devices map[string]netip.Addr, peers map[netip.Addr]string) error {
	h, err := space.Link()
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
	indexes := make(map[string]int)
	ours := make(map[int]bool)
	for name, address := range devices {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		indexes[name] = l.Attrs().Index
		ours[l.Attrs().Index] = true
		if err := errors.Join(k.addresses(h, l, []netip.Prefix{hostPrefix(address)}), k.up(h, l, mtu)); err != nil {
			return err
		}
	}
	var want []route
	for address, name := range peers {
		want = append(want, route{to: hostPrefix(address), src: devices[name], link: indexes[name], kind: unix.RTN_UNICAST})
	}
	return k.routes(h, want, func(r route) bool { return ours[r.link] })
}
