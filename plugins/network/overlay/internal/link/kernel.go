//go:build linux

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// Kernel makes calls that change the kernel's state, and counts them.
type Kernel struct {
	// Before is called before each change, with its name. An error keeps the change from
	// being made. Tests end a process here.
	Before func(call string) error

	// Mounts are where names of namespaces are mounted.
	Mounts netns.Mounts

	changes atomic.Uint64
}

// Changes returns how many changes were made.
func (k *Kernel) Changes() uint64 { return k.changes.Load() }

// Do makes one change.
func (k *Kernel) Do(name string, change func() error) error {
	if k.Before != nil {
		if err := k.Before(name); err != nil {
			return err
		}
	}
	k.changes.Add(1)
	if err := change(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// sysctl sets kernel parameters of a namespace that differ, given as path and value. The
// path lies below /proc/sys/net. Parameters that the kernel does not have are left out if
// their value begins with "?".
func (k *Kernel) sysctl(n *netns.Namespace, pairs ...[2]string) error {
	return k.Mounts.Do(n, func() error {
		for _, pair := range pairs {
			path, value := filepath.Join("/proc/sys/net", pair[0]), pair[1]
			optional := value[0] == '?'
			if optional {
				value = value[1:]
			}
			present, err := os.ReadFile(path)
			if err == nil && string(present) == value+"\n" {
				continue
			}
			if err == nil {
				err = k.Do("set "+pair[0], func() error { return os.WriteFile(path, []byte(value), 0) })
			}
			if err != nil && (!optional || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS)) {
				return err
			}
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// find returns a link by name, or nil if there is none.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return l, err
}

// remove deletes a link by name, if there is one.
func (k *Kernel) remove(h *netlink.Handle, name string) error {
	l, err := find(h, name)
	if err != nil || l == nil {
		return err
	}
	err = k.Do("delete link "+name, func() error { return h.LinkDel(l) })
	if errors.Is(err, unix.ENODEV) {
		// The namespace of its other end has ended meanwhile.
		return nil
	}
	return err
}

// up sets a link's MTU, if it is not 0, and sets it up.
func (k *Kernel) up(h *netlink.Handle, l netlink.Link, mtu int) error {
	if mtu != 0 && l.Attrs().MTU != mtu {
		if err := k.Do("set MTU of "+l.Attrs().Name, func() error { return h.LinkSetMTU(l, mtu) }); err != nil {
			return err
		}
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return k.Do("set up "+l.Attrs().Name, func() error { return h.LinkSetUp(l) })
}

// addresses gives a link exactly the given addresses. Link-local ones of IPv6 that the
// kernel makes are left alone.
func (k *Kernel) addresses(h *netlink.Handle, l netlink.Link, want []netip.Prefix) error {
	have, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	missing := make(map[netip.Prefix]bool, len(want))
	for _, p := range want {
		missing[p] = true
	}
	for _, a := range have {
		p := prefix(a.IPNet)
		if missing[p] {
			delete(missing, p)
			continue
		}
		if p.Addr().IsLoopback() || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := k.Do("delete address "+p.String(), func() error { return h.AddrDel(l, &a) }); err != nil {
			return err
		}
	}
	for _, p := range want {
		if !missing[p] {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := k.Do("add address "+p.String(), func() error { return h.AddrReplace(l, a) }); err != nil {
			return err
		}
	}
	return nil
}

// route is a route, as far as routes here differ.
type route struct {
	to   netip.Prefix
	via  netip.Addr
	src  netip.Addr
	link int
	kind int
}

func (r route) kernel() *netlink.Route {
	k := &netlink.Route{Dst: ipNet(r.to), LinkIndex: r.link, Type: r.kind, Protocol: unix.RTPROT_STATIC, Family: family(r.to.Addr())}
	if r.kind == unix.RTN_UNICAST && !r.via.IsValid() && r.to.Addr().Is4() {
		k.Scope = netlink.SCOPE_LINK
	}
	if r.via.IsValid() {
		k.Gw = r.via.AsSlice()
		k.Flags = int(netlink.FLAG_ONLINK)
	}
	if r.src.IsValid() {
		k.Src = r.src.AsSlice()
	}
	return k
}

// routeProtocol marks routes made here.
const routeProtocol = unix.RTPROT_STATIC

// routes makes the routes made here be the given ones. Only those that the filter accepts
// are looked at.
func (k *Kernel) routes(h *netlink.Handle, want []route, ours func(route) bool) error {
	var have []netlink.Route
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return err
		}
		have = append(have, list...)
	}
	present := make(map[route]bool, len(have))
	wanted := make(map[route]bool, len(want))
	for _, r := range want {
		wanted[r] = true
	}
	var obsolete []route
	for _, r := range have {
		got := route{to: prefix(r.Dst), via: addrOf(r.Gw), src: addrOf(r.Src), link: r.LinkIndex, kind: r.Type}
		if r.Dst == nil {
			got.to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if r.Family == netlink.FAMILY_V6 {
				got.to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		if got.kind == unix.RTN_UNREACHABLE {
			// The kernel gives those of IPv6 the loopback link.
			got.link = 0
		}
		if !ours(got) {
			continue
		}
		present[got] = true
		if !wanted[got] {
			obsolete = append(obsolete, got)
		}
	}
	for _, r := range want {
		if present[r] {
			continue
		}
		if err := k.Do("add route "+r.to.String(), func() error { return h.RouteReplace(r.kernel()) }); err != nil {
			return err
		}
	}
	// New routes come first, so that there is a way at each moment. The kernel may have
	// put one in the place of an old one.
	for _, r := range obsolete {
		if err := k.Do("delete route "+r.to.String(), func() error { return h.RouteDel(r.kernel()) }); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// neighbours gives a link exactly the given permanent neighbours.
func (k *Kernel) neighbours(h *netlink.Handle, link int, want map[netip.Addr]string) error {
	missing := make(map[netip.Addr]string, len(want))
	for a, m := range want {
		missing[a] = m
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(link, f) })
		if err != nil {
			return err
		}
		for _, n := range have {
			if n.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			a := addrOf(n.IP)
			if a.IsMulticast() {
				continue
			}
			if missing[a] == n.HardwareAddr.String() {
				delete(missing, a)
				continue
			}
			if _, replaced := missing[a]; replaced {
				continue
			}
			if err := k.Do("delete neighbour "+a.String(), func() error { return h.NeighDel(&n) }); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
	for a, m := range missing {
		mac, err := net.ParseMAC(m)
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: link, Family: family(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
		if err := k.Do("add neighbour "+a.String(), func() error { return h.NeighSet(n) }); err != nil {
			return err
		}
	}
	return nil
}

// tunnel is where frames to a peer go.
type tunnel struct {
	address netip.Addr
	port    uint16
}

// tunnels makes a VXLAN device send frames to exactly the given peers, by hardware
// address. netlink's own type for entries lacks the port. The calling thread is in the
// device's namespace.
func (k *Kernel) tunnels(link int, defaultPort uint16, want map[string]tunnel) error {
	request := func(kind, flags int, mac string, t tunnel) error {
		hardware, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
		r.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(link), State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, Flags: netlink.NTF_SELF})
		r.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, hardware))
		r.AddData(nl.NewRtAttr(netlink.NDA_DST, t.address.AsSlice()))
		if t.port != defaultPort {
			r.AddData(nl.NewRtAttr(netlink.NDA_PORT, binary.BigEndian.AppendUint16(nil, t.port)))
		}
		_, err = r.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}
	have, err := listTunnels(link, defaultPort)
	if err != nil {
		return err
	}
	var errs []error
	for mac, t := range have {
		if want[mac] == t {
			continue
		}
		err := k.Do("delete tunnel to "+t.address.String(), func() error { return request(unix.RTM_DELNEIGH, 0, mac, t) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	for mac, t := range want {
		if have[mac] == t {
			continue
		}
		errs = append(errs, k.Do("add tunnel to "+t.address.String(), func() error {
			return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, mac, t)
		}))
	}
	return errors.Join(errs...)
}

// listTunnels returns where a VXLAN device sends frames to.
func listTunnels(link int, defaultPort uint16) (map[string]tunnel, error) {
	r := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	r.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE})
	messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	have := make(map[string]tunnel)
	for _, m := range messages {
		var head netlink.Ndmsg
		if len(m) < head.Len() || int(nl.NativeEndian().Uint32(m[4:])) != link {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m[head.Len():])
		if err != nil {
			return nil, err
		}
		t, mac := tunnel{port: defaultPort}, ""
		for _, a := range attributes {
			switch a.Attr.Type {
			case netlink.NDA_LLADDR:
				mac = net.HardwareAddr(a.Value).String()
			case netlink.NDA_DST:
				t.address = addrOf(a.Value)
			case netlink.NDA_PORT:
				t.port = binary.BigEndian.Uint16(a.Value)
			}
		}
		if mac != "" && t.address.IsValid() {
			have[mac] = t
		}
	}
	return have, nil
}
