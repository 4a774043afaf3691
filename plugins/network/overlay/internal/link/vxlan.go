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
	if err := k.createVXLAN(host, s, n); err != nil {
		return nil, err
	}
	if l, err = h.LinkByName(Overlay); err != nil {
		return nil, err
	}
	return l, k.startVXLAN(s, h, l)
}

// createVXLAN creates the network's VXLAN device.
func (k *Kernel) createVXLAN(host *netns.Namespace, s *Sandbox, n *Network) error {
	if n.Tunnel != nil {
		host = n.Tunnel
	}
	outer, err := host.Link()
	if err != nil {
		return err
	}
	// The device is created through the host's namespace or the tunnel's, so that its UDP
	// socket is there, and right in the network's.
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = Overlay, s.MTU, PeerMAC(n.Node)
	attributes.Namespace = netlink.NsFd(s.Space.FD())
	local := n.local()
	device := &netlink.Vxlan{LinkAttrs: attributes, VxlanId: int(n.VNI), Port: int(local.Port()), SrcAddr: local.Addr().AsSlice(), NoAge: true}
	if local.Addr().Is6() {
		device.UDP6ZeroCSumRx, device.UDP6ZeroCSumTx = true, true
	}
	err = k.Do("create VXLAN device", func() error { return outer.LinkAdd(device) })
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another worker or program on this machine uses UDP port %d for VXLAN: give each worker its own --data-path-port", n.Local.Port())
	}
	return err
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
