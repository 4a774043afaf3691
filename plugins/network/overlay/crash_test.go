//go:build linux

package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// snapshot describes what a namespace holds, but for what differs each time: numbers of
// links and random hardware addresses.
func snapshot(t testing.TB, title string, space *netns.Namespace) []string {
	t.Helper()
	var lines []string
	add := func(format string, values ...any) {
		lines = append(lines, title+": "+fmt.Sprintf(format, values...))
	}
	h := handle(t, space)
	links, err := h.LinkList()
	must(t, err)
	names := make(map[int]string)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		mac := a.HardwareAddr.String()
		if a.Name == "up0" || strings.HasPrefix(a.Name, "mu") || a.Name == "eth0" && title == "host" {
			mac = "any"
		}
		add("link %s %s mtu %d flags %s mac %s alias %q", a.Name, l.Type(), a.MTU, a.Flags&^net.FlagRunning, mac, a.Alias)
		addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
		must(t, err)
		for _, x := range addresses {
			if x.IP.To4() != nil || !x.IP.IsLinkLocalUnicast() {
				add("address %s on %s", x.IPNet, a.Name)
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, syscall.AF_BRIDGE} {
			neighbours, err := h.NeighList(a.Index, family)
			must(t, err)
			for _, n := range neighbours {
				if n.State&netlink.NUD_PERMANENT != 0 && !n.IP.IsMulticast() && !strings.HasPrefix(n.HardwareAddr.String(), "33:33") && n.HardwareAddr.String() != "01:00:5e:00:00:01" {
					add("neighbour %s %s on %s", n.IP, n.HardwareAddr, a.Name)
				}
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Protocol: 4}, netlink.RT_FILTER_PROTOCOL)
		must(t, err)
		for _, r := range routes {
			add("route %s via %s src %s on %s type %d", r.Dst, r.Gw, r.Src, names[r.LinkIndex], r.Type)
		}
	}
	conn, err := nftables.New(nftables.WithNetNSFd(space.FD()))
	must(t, err)
	all, err := conn.ListTables()
	must(t, err)
	for _, table := range all {
		chains, err := conn.ListChainsOfTableFamily(table.Family)
		must(t, err)
		for _, c := range chains {
			if c.Table.Name != table.Name {
				continue
			}
			add("table %s %d chain %s", table.Name, table.Family, c.Name)
			rules, err := conn.GetRules(table, c)
			must(t, err)
			for i, r := range rules {
				add("table %s %d chain %s rule %d %q", table.Name, table.Family, c.Name, i, r.UserData)
			}
		}
		sets, err := conn.GetSets(table)
		must(t, err)
		for _, s := range sets {
			elements, err := conn.GetSetElements(s)
			must(t, err)
			for _, e := range elements {
				add("table %s %d set %s %q = %q", table.Name, table.Family, s.Name, e.Key, e.Val)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// all describes a machine, with the namespaces of its networks and of the given tasks.
func (m *machine) all(tasks ...*endpoint) []string {
	m.t.Helper()
	lines := snapshot(m.t, "host", m.space)
	entries, err := os.ReadDir(filepath.Join(m.dir, "spaces"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		space, err := netns.Open(filepath.Join(m.dir, "spaces", e.Name()))
		must(m.t, err)
		lines = append(lines, snapshot(m.t, e.Name(), space)...)
		must(m.t, space.Close())
	}
	for _, e := range tasks {
		lines = append(lines, snapshot(m.t, e.id, e.space)...)
	}
	return lines
}

// busy is a request that uses everything.
func busy(m *machine) *networkv1.ApplyRequest {
	r := &networkv1.ApplyRequest{Complete: true, Node: m.node}
	r.Networks = append(r.Networks,
		net10("net", 4097, 1, func(n *networkv1.Network) { n.Ingress = true }),
		net10("closed", 4098, 1, encrypted),
		&networkv1.Network{Id: "inner", Name: "inner", Driver: overlay.DriverBridge, Internal: true, Subnets: []string{"10.66.0.0/16"}, NodeAddresses: []string{"10.66.0.1"}},
	)
	for i := range 2 {
		r.Peers = append(r.Peers, &networkv1.Peer{NetworkId: "net", NodeId: fmt.Sprint("peer-", i), DataPathAddress: fmt.Sprint("192.0.2.", 100+i), DataPathPort: uint32(4789 + i), Blocks: blocks(7 + i)})
		r.Peers = append(r.Peers, &networkv1.Peer{NetworkId: "closed", NodeId: fmt.Sprint("peer-", i), DataPathAddress: fmt.Sprint("192.0.2.", 100+i), DataPathPort: 4789, Blocks: blocks(7 + i), PublicKey: bytes.Repeat([]byte{byte(1 + i)}, 32), EncryptedPort: 4790})
	}
	ports := []*musterv1.PortConfig{port(8080, 80), {Protocol: musterv1.PortConfig_UDP, PublishedPort: 5353, TargetPort: 53, PublishMode: musterv1.PortConfig_INGRESS, ExternalTraffic: musterv1.PortConfig_LOCAL}}
	r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2", "fd00:64::2"}, Ports: ports},
		&networkv1.Service{NetworkId: "inner", Id: "own", Name: "own", VirtualIps: []string{"10.66.255.2"}})
	r.Backends = append(r.Backends, &networkv1.Backends{NetworkId: "net", ServiceId: "web", Complete: true, Backends: []*networkv1.Backend{
		{TaskId: "a", NodeId: m.node.GetId(), Addresses: strings.Split(at(1, 2), ",")},
		{TaskId: "b", NodeId: "peer-0", Addresses: strings.Split(at(7, 2), ",")},
	}}, &networkv1.Backends{NetworkId: "inner", ServiceId: "own", Complete: true, Backends: []*networkv1.Backend{
		{TaskId: "a", NodeId: m.node.GetId(), Addresses: []string{"10.66.0.2"}},
		{TaskId: "own", NodeId: m.node.GetId(), Addresses: []string{"10.66.0.3"}},
	}})
	return r
}

var errKilled = errors.New("the process was killed")

// killAfter ends a plugin's process, as far as the kernel can tell, before its nth change.
func killAfter(p *overlay.Plugin, n int) (calls *[]string) {
	calls = &[]string{}
	p.Before(func(name string) error {
		if *calls = append(*calls, name); len(*calls) > n {
			return errKilled
		}
		return nil
	})
	return calls
}

// crashMachines is how many machines share the steps of TestProcessMayEndAtAnyStep. Most of
// the time each waits for the kernel.
const crashMachines = 8

// TestProcessMayEndAtAnyStep ends the plugin before each change of the kernel, lets a new
// one do the same again, and compares the outcome with that of an undisturbed run. Then
// it does the same with the removal of everything.
func TestProcessMayEndAtAnyStep(t *testing.T) {
	t.Parallel()
	var machines sync.WaitGroup
	for first := range crashMachines {
		machines.Go(func() {
			t.Run(fmt.Sprint("machine ", first), func(t *testing.T) { endAtSteps(t, first) })
		})
	}
	machines.Wait()
}

// endAtSteps ends the plugin of one machine at its share of the steps.
func endAtSteps(t *testing.T, first int) {
	_, machines := makeMachines(t, 1)
	m := machines[0]
	a := m.task("a", "net="+at(1, 2), "inner=10.66.0.2")
	a.request.Ports = []*musterv1.PortConfig{{Protocol: musterv1.PortConfig_TCP, PublishedPort: 8081, TargetPort: 81, PublishMode: musterv1.PortConfig_HOST}}
	own := &networkv1.AttachRequest{TaskId: "own", TaskName: "own", ServiceId: "s", ServiceName: "s", Attachments: []*networkv1.Attachment{{NetworkId: "inner", Addresses: []string{"10.66.0.3"}}}}
	ctx := context.Background()
	build := func() error {
		failed, err := m.plugin.Apply(ctx, busy(m))
		if err = errors.Join(append(slices.Collect(maps.Values(failed)), err)...); err != nil {
			return err
		}
		for _, r := range []*networkv1.AttachRequest{a.request, own} {
			if _, err := m.plugin.Attach(ctx, r); err != nil {
				return err
			}
		}
		return nil
	}
	tear := func() error {
		ids, err := m.plugin.List(ctx, m.node.GetId())
		if err != nil {
			return err
		}
		slices.Sort(ids)
		for _, id := range ids {
			if err := m.plugin.Detach(ctx, id); err != nil {
				return err
			}
		}
		failed, err := m.plugin.Apply(ctx, &networkv1.ApplyRequest{Complete: true, Node: m.node})
		return errors.Join(append(slices.Collect(maps.Values(failed)), err)...)
	}
	calls := killAfter(m.plugin, 1<<30)
	must(t, build())
	building := len(*calls)
	want := m.all(a)
	must(t, tear())
	tearing := len(*calls) - building
	if left := m.leftovers(); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	if building < 50 || tearing < 5 {
		t.Fatalf("%d changes to build, %d to remove: the test has lost its object", building, tearing)
	}
	for n := first; n < building; n += crashMachines {
		killAfter(m.plugin, n)
		if err := build(); !errors.Is(err, errKilled) {
			t.Fatalf("killed before change %d: %v", n, err)
		}
		m.restart()
		must(t, build())
		if diff := cmp.Diff(want, m.all(a)); diff != "" {
			t.Fatalf("killed before change %d while building:\n%s", n, diff)
		}
		if n/crashMachines%10 == first {
			calls := killAfter(m.plugin, 1<<30)
			must(t, build())
			if len(*calls) != 0 {
				t.Fatalf("killed before change %d: a repeated call changed %q", n, *calls)
			}
		}
		if n < tearing {
			killAfter(m.plugin, n)
			if err := tear(); !errors.Is(err, errKilled) {
				t.Fatalf("killed before change %d of the removal: %v", n, err)
			}
			m.restart()
		}
		must(t, tear())
		if left := append(m.leftovers(), snapshotOf(t, a)...); len(left) > 0 {
			t.Fatalf("killed before change %d of the removal: left behind %v", n, left)
		}
	}
}

// snapshotOf returns the links that a task has beyond its own loopback.
func snapshotOf(t *testing.T, e *endpoint) []string {
	links, err := handle(t, e.space).LinkList()
	must(t, err)
	var names []string
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			names = append(names, e.id+" "+l.Attrs().Name)
		}
	}
	return names
}

// TestTrafficFlowsWithoutProcess ends the plugin and starts a new one with traffic on the
// way.
func TestTrafficFlowsWithoutProcess(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	a := m.task("a", "net="+at(1, 2))
	m.apply(busy(m))
	a.attach()
	a.serve(80)
	only := func(r *networkv1.ApplyRequest) *networkv1.ApplyRequest {
		r.Backends[0].Backends = r.Backends[0].Backends[:1]
		return r
	}
	m.apply(only(busy(m)))
	conn, err := dialer(outside)(t.Context(), "tcp", m.address+":8080")
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, m.plugin.Close())
	if server, _ := mustGet(t, outside, m.address+":8080"); server != "a" {
		t.Errorf("without a process: answered by %s", server)
	}
	m.start()
	before := m.all(a)
	calls := killAfter(m.plugin, 1<<30)
	m.apply(only(busy(m)))
	a.attach()
	if len(*calls) != 0 {
		t.Errorf("a new process changed %q, though nothing differs", *calls)
	}
	if diff := cmp.Diff(before, m.all(a)); diff != "" {
		t.Errorf("a new process changed:\n%s", diff)
	}
	_, err = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	must(t, err)
	buffer := make([]byte, 12)
	if _, err := conn.Read(buffer); err != nil || string(buffer) != "HTTP/1.0 200" {
		t.Errorf("the connection that was open: %q, %v", buffer, err)
	}
}

// TestPortStaysWithItsHolder lets two networks publish one port. The one that had it first
// keeps it in audits and new processes, whatever the ids are.
func TestPortStaysWithItsHolder(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	first := net10("z-first", 4097, 1, func(n *networkv1.Network) { n.Ingress = true })
	second := net10("a-second", 4098, 1, func(n *networkv1.Network) { n.Ingress = true })
	request := &networkv1.ApplyRequest{Node: m.node, Complete: true}
	for _, n := range []*networkv1.Network{first, second} {
		request.Networks = append(request.Networks, n)
		request.Services = append(request.Services, &networkv1.Service{NetworkId: n.GetId(), Id: "web", Name: "web", Ports: ports(port(8080, 80))})
		_, err := m.plugin.Apply(t.Context(), request)
		must(t, err)
		task := m.attach("task-on-"+n.GetId(), n.GetId()+"="+at(1, 2))
		task.serve(80)
		b := backends(n.GetId(), "web", task)
		_, err = m.plugin.Apply(t.Context(), &networkv1.ApplyRequest{Node: m.node, Backends: []*networkv1.Backends{b}})
		must(t, err)
		request.Backends = append(request.Backends, b)
	}
	expect := func(after string) {
		t.Helper()
		if server, _ := mustGet(t, outside, m.address+":8080"); server != "task-on-z-first" {
			t.Errorf("after %s the port is answered by %s", after, server)
		}
	}
	expect("the second network")
	_, _ = m.plugin.Audit(t.Context())
	expect("an audit")
	m.restart()
	failed, err := m.plugin.Apply(t.Context(), request)
	must(t, err)
	if failed["a-second"] == nil || failed["z-first"] != nil {
		t.Errorf("failed: %v", failed)
	}
	expect("a new process")
}

// TestNetworksWithOneShortNameAreKeptApart makes a network whose namespace would be that of
// another one.
func TestNetworksWithOneShortNameAreKeptApart(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	names := make(map[string]string)
	var one, two string
	for i := 0; one == ""; i++ {
		id := fmt.Sprint("network-", i)
		if other := names[overlay.Short(id)]; other != "" {
			one, two = other, id
		}
		names[overlay.Short(id)] = id
	}
	m.apply(&networkv1.ApplyRequest{Networks: []*networkv1.Network{net10(one, 4097, 1, nil)}})
	a, b := m.attach("a", one+"="+at(1, 2)), m.attach("b", one+"="+at(1, 3))
	b.serve(80)
	failed, err := m.plugin.Apply(t.Context(), &networkv1.ApplyRequest{Node: m.node, Networks: []*networkv1.Network{net10(two, 4098, 1, nil)}})
	must(t, err)
	if failed[two] == nil || failed[one] != nil {
		t.Errorf("failed: %v", failed)
	}
	if _, err := m.plugin.Attach(t.Context(), m.task("c", two+"="+at(1, 4)).request); err == nil {
		t.Error("a task was attached to the namespace of another network")
	}
	must(t, m.plugin.Detach(t.Context(), "c"))
	m.apply(&networkv1.ApplyRequest{RemovedNetworks: []string{two}})
	if server, _ := mustGet(t, a.space, first(at(1, 3))+":80"); server != "b" {
		t.Errorf("answered by %s", server)
	}
}

// TestAuditReadsLittleOfTasks lets a task make many addresses and routes of its own.
func TestAuditReadsLittleOfTasks(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	m.apply(busy(m))
	a := m.attach("a", "net="+at(1, 2))
	h := handle(t, a.space)
	own, err := h.LinkByName("eth0")
	must(t, err)
	lo, err := h.LinkByName("lo")
	must(t, err)
	extra, err := netlink.ParseAddr("198.51.100.1/32")
	must(t, err)
	must(t, h.AddrAdd(own, extra))
	_, to, err := net.ParseCIDR("203.0.113.0/24")
	must(t, err)
	must(t, h.RouteAdd(&netlink.Route{Dst: to, LinkIndex: lo.Attrs().Index}))
	must(t, h.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(198, 18, 0, 0), Mask: net.CIDRMask(15, 32)}, LinkIndex: own.Attrs().Index, Protocol: 4}))
	before := snapshot(t, "a", a.space)
	repairs, err := m.plugin.Audit(t.Context())
	must(t, err)
	if diff := cmp.Diff(before, snapshot(t, "a", a.space)); diff != "" || repairs != 0 {
		t.Errorf("an audit made %d repairs of what is the task's own:\n%s", repairs, diff)
	}
}

// TestAuditRepairsWhatOthersChange does to the kernel what other programs and people do.
func TestAuditRepairsWhatOthersChange(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	m.apply(busy(m))
	a := m.attach("a", "net="+at(1, 2))
	want := m.all(a)
	space, err := netns.Open(m.plugin.SpaceOf(m.node.GetId(), "net"))
	must(t, err)
	defer func() { _ = space.Close() }()
	flush := func(space *netns.Namespace) func(*testing.T) {
		return func(t *testing.T) {
			conn, err := nftables.New(nftables.WithNetNSFd(space.FD()))
			must(t, err)
			conn.FlushRuleset()
			must(t, conn.Flush())
		}
	}
	remove := func(space *netns.Namespace, name string) func(*testing.T) {
		return func(t *testing.T) {
			l, err := handle(t, space).LinkByName(name)
			must(t, err)
			must(t, handle(t, space).LinkDel(l))
		}
	}
	for name, damage := range map[string]func(*testing.T){
		"nothing":                    func(*testing.T) {},
		"rules of the host flushed":  flush(m.space),
		"rules of a network flushed": flush(space),
		"VXLAN device removed":       remove(space, "vxlan0"),
		"way to the host removed":    remove(space, "up0"),
		"a task's interface removed": remove(a.space, "eth0"),
		"routes removed": func(t *testing.T) {
			routes, err := handle(t, space).RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 4}, netlink.RT_FILTER_PROTOCOL)
			must(t, err)
			for _, r := range routes {
				must(t, handle(t, space).RouteDel(&r))
			}
		},
		"an element removed": func(t *testing.T) {
			conn, err := nftables.New(nftables.WithNetNSFd(space.FD()))
			must(t, err)
			table := &nftables.Table{Name: "muster", Family: nftables.TableFamilyIPv4}
			set, err := conn.GetSetByName(table, "targets")
			must(t, err)
			elements, err := conn.GetSetElements(set)
			must(t, err)
			must(t, conn.SetDeleteElements(set, elements[:1]))
			must(t, conn.Flush())
		},
		"a rule removed": func(t *testing.T) {
			conn, err := nftables.New(nftables.WithNetNSFd(space.FD()))
			must(t, err)
			table := &nftables.Table{Name: "muster", Family: nftables.TableFamilyIPv4}
			rules, err := conn.GetRules(table, &nftables.Chain{Name: "source"})
			must(t, err)
			must(t, conn.DelRule(rules[0]))
			must(t, conn.Flush())
		},
		"forwarding turned off": func(t *testing.T) {
			must(t, space.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := m.repairs()
			damage(t)
			_, err := m.plugin.Audit(t.Context())
			must(t, err)
			// An audit of the plugin's own may have been first.
			if repairs := m.repairs() - before; (repairs > 0) != (name != "nothing") {
				t.Errorf("%d repairs", repairs)
			}
			if diff := cmp.Diff(want, m.all(a)); diff != "" {
				t.Errorf("after the audit:\n%s", diff)
			}
		})
	}
	if n := m.repairs(); n < 9 {
		t.Errorf("%d repairs are counted", n)
	}
}

// repairs returns how many repairs the plugin has counted.
func (m *machine) repairs() uint64 {
	m.t.Helper()
	stats, err := m.plugin.Stats(m.t.Context())
	must(m.t, err)
	return stats.GetRepairs()
}
