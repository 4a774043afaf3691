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

// Interface is a task's place on one network.
type Interface struct {
	Task, Network string
	Addresses     []netip.Addr
	Subnets       []netip.Prefix
	// Index is the interface's number in the task, from 0.
	Index int
	// Default interfaces have the default route.
	Default bool
	// Names interfaces lead to the name server.
	Names bool
}

// AttachNetwork makes the network's end of a task's interface, and the interface with it if
// there is none.
func (k *Kernel) AttachNetwork(s *Sandbox, space *netns.Namespace, i *Interface) (name string, err error) {
	h, err := s.Space.Link()
	if err != nil {
		return "", err
	}
	inner, err := space.Link()
	if err != nil {
		return "", err
	}
	near, far, err := k.pair(s, h, inner, space, i)
	if err != nil {
		return "", err
	}
	if err := k.up(h, near, s.MTU); err != nil {
		return "", err
	}
	index, mac := near.Attrs().Index, TaskMAC(i.Task, i.Network).String()
	neighbours := make(map[netip.Addr]string)
	var routes []route
	for _, a := range i.Addresses {
		neighbours[a] = mac
		routes = append(routes, route{to: hostPrefix(a), link: index, kind: unix.RTN_UNICAST})
	}
	if err := k.neighbours(h, index, neighbours); err != nil {
		return "", err
	}
	if err := k.routes(h, routes, func(r route) bool { return r.link == index }); err != nil {
		return "", err
	}
	if near.Attrs().Alias == i.Task {
		// The task's side was set up before. It is the task's own from then on, and may hold
		// more than can be read in time.
		return far.Attrs().Name, k.up(inner, far, s.MTU)
	}
	if err := k.inside(inner, space, far, s.MTU, i); err != nil {
		return "", err
	}
	return far.Attrs().Name, k.Do("name task of link", func() error { return h.LinkSetAlias(near, i.Task) })
}

// pair returns both ends of a task's interface. It creates them if they are not there, or
// lead to a namespace that the task no longer has.
func (k *Kernel) pair(s *Sandbox, h, inner *netlink.Handle, space *netns.Namespace, i *Interface) (near, far netlink.Link, err error) {
	name, mac := TaskLink(i.Task, i.Network), TaskMAC(i.Task, i.Network)
	if near, err = find(h, name); err != nil {
		return nil, nil, err
	}
	if near != nil {
		if far, err = partner(inner, near, mac.String()); err != nil || far != nil {
			return near, far, err
		}
		if err := k.remove(h, name); err != nil {
			return nil, nil, err
		}
	}
	free, err := freeName(inner, i.Index)
	if err != nil {
		return nil, nil, err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = name, s.MTU, gatewayMAC
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: free, PeerHardwareAddr: mac, PeerMTU: uint32(s.MTU), PeerNamespace: netlink.NsFd(space.FD())}
	if err := k.Do("create interface of task", func() error { return h.LinkAdd(veth) }); err != nil {
		return nil, nil, err
	}
	if near, err = h.LinkByName(name); err != nil {
		return nil, nil, err
	}
	if far, err = partner(inner, near, mac.String()); err == nil && far == nil {
		err = fmt.Errorf("interface %s is gone", free)
	}
	return near, far, err
}

// partner returns the other end of a veth pair, or nil if it is not where the handle leads.
func partner(inner *netlink.Handle, near netlink.Link, mac string) (netlink.Link, error) {
	l, err := inner.LinkByIndex(near.Attrs().ParentIndex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil || l.Type() != "veth" || l.Attrs().HardwareAddr.String() != mac || l.Attrs().ParentIndex != near.Attrs().Index {
		return nil, err
	}
	return l, nil
}

// maxNames is how many names of interfaces are tried.
const maxNames = 256

// freeName returns the first name eth0, eth1 and so on from a number that no link has.
func freeName(inner *netlink.Handle, from int) (string, error) {
	for i := from; i < from+maxNames; i++ {
		name := fmt.Sprintf("eth%d", i)
		if l, err := find(inner, name); err != nil || l == nil {
			return name, err
		}
	}
	return "", fmt.Errorf("the task has interfaces with all names from eth%d to eth%d", from, from+maxNames-1)
}

// inside sets up a task's own end of its interface.
func (k *Kernel) inside(inner *netlink.Handle, space *netns.Namespace, l netlink.Link, mtu int, i *Interface) error {
	lo, err := inner.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := k.up(inner, lo, 0); err != nil {
		return err
	}
	var addresses []netip.Prefix
	six := false
	for _, a := range i.Addresses {
		addresses = append(addresses, hostPrefix(a))
		six = six || a.Is6()
	}
	name := l.Attrs().Name
	err = k.sysctl(space,
		[2]string{"ipv6/conf/" + name + "/disable_ipv6", "?" + bit(!six)},
		[2]string{"ipv6/conf/" + name + "/accept_ra", "?0"},
	)
	if err != nil {
		return err
	}
	if err := k.addresses(inner, l, addresses); err != nil {
		return err
	}
	if err := k.up(inner, l, mtu); err != nil {
		return err
	}
	index := l.Attrs().Index
	neighbours := map[netip.Addr]string{Gateway: gatewayMAC.String()}
	if six {
		neighbours[Gateway6] = gatewayMAC.String()
	}
	if err := k.neighbours(inner, index, neighbours); err != nil {
		return err
	}
	return k.routes(inner, taskRoutes(i, index), func(r route) bool { return r.link == index })
}

// taskRoutes returns the routes of a task through one of its interfaces.
func taskRoutes(i *Interface, index int) []route {
	var routes []route
	for _, a := range i.Addresses {
		next, all := Gateway, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			next, all = Gateway6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if i.Names && a.Is4() {
			routes = append(routes, route{to: hostPrefix(Gateway), src: a, link: index, kind: unix.RTN_UNICAST})
		}
		for _, s := range i.Subnets {
			if s.Addr().Is4() == a.Is4() {
				routes = append(routes, route{to: s.Masked(), via: next, src: a, link: index, kind: unix.RTN_UNICAST})
			}
		}
		if i.Default {
			routes = append(routes, route{to: all, via: next, src: a, link: index, kind: unix.RTN_UNICAST})
		}
	}
	return routes
}

// DetachNetwork removes a task's interface on a network.
func (k *Kernel) DetachNetwork(space *netns.Namespace, task, network string) error {
	h, err := space.Link()
	if err != nil {
		return err
	}
	return k.remove(h, TaskLink(task, network))
}

// DetachTask removes a task's interface on any of the given networks, or one that has the
// name of the task.
func (k *Kernel) DetachTask(space *netns.Namespace, task string, networks []string) error {
	names := make(map[string]bool)
	for _, n := range networks {
		names[TaskLink(task, n)] = true
	}
	return k.deleteLinks(space, func(l netlink.Link) bool {
		return l.Type() == "veth" && (l.Attrs().Alias == task || names[l.Attrs().Name])
	})
}

// Tasks returns the ids of the tasks that have an interface in a network's namespace.
func Tasks(space *netns.Namespace) ([]string, error) {
	_, links, err := linksOf(space)
	if err != nil {
		return nil, err
	}
	var tasks []string
	for _, l := range links {
		if l.Type() == "veth" && l.Attrs().Name != Uplink && l.Attrs().Alias != "" {
			tasks = append(tasks, l.Attrs().Alias)
		}
	}
	return tasks, nil
}

// RemoveUnknown removes the interfaces in a network's namespace that are not among the
// given ones. A crash may leave one without the name of its task.
func (k *Kernel) RemoveUnknown(space *netns.Namespace, known map[string]bool) error {
	return k.deleteLinks(space, func(l netlink.Link) bool {
		a := l.Attrs()
		return l.Type() == "veth" && a.Name != Uplink && !known[a.Name] && a.Alias == ""
	})
}
