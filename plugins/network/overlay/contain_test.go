//go:build linux

package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// TestSpoofedSourceIsDropped sends packets with the source of another task, of the
// network's gateway, and of a stranger. The last, with the task's own, must be the only
// one that arrives.
func TestSpoofedSourceIsDropped(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, nil)
	bad := machines[0].attach("bad", "net="+at(1, 2))
	machines[0].attach("other", "net="+at(1, 3))
	for i, target := range []*endpoint{machines[0].attach("near", "net="+at(1, 4)), machines[1].attach("far", "net="+at(2, 4))} {
		conn := target.listenUDP(9)
		own := first(at(1, 2))
		sources := []string{first(at(1, 3)), first(at(2, 2)), "10.64.17.1", "169.254.1.1", "203.0.113.9", own}
		repeat(t, func() error {
			for _, source := range sources {
				send(t, bad.space, source, target.request.GetAttachments()[0].GetAddresses()[0])
			}
			must(t, conn.SetReadDeadline(time.Now().Add(packetPatience)))
			_, from, err := conn.ReadFrom(make([]byte, 100))
			if err == nil && from.(*net.UDPAddr).IP.String() != own {
				t.Errorf("target %d received a packet from %v first", i, from)
			}
			return err
		})
	}
	stats, err := machines[0].plugin.Stats(context.Background())
	must(t, err)
	if stats.GetDroppedPackets() < 10 {
		t.Errorf("%d dropped packets are counted, want 10", stats.GetDroppedPackets())
	}
}

// send sends a UDP packet with any source.
func send(t *testing.T, space *netns.Namespace, source, target string) {
	t.Helper()
	must(t, space.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		from, to := netip.MustParseAddr(source).As4(), netip.MustParseAddr(target).As4()
		packet := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3], 0, 7, 0, 9, 0, 9, 0, 0, 'x'}
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to})
	}))
}

// TestForgedARPChangesNothing lets a task claim the address of another one.
func TestForgedARPChangesNothing(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	bad, victim, client := m.attach("bad", "net="+at(1, 2)), m.attach("victim", "net="+at(1, 3)), m.attach("client", "net="+at(1, 4))
	victim.serve(80)
	bad.serve(80)
	h := handle(t, bad.space)
	l, err := h.LinkByName("eth0")
	must(t, err)
	a, err := netlink.ParseAddr(first(at(1, 3)) + "/32")
	must(t, err)
	must(t, h.AddrAdd(l, a))
	mac, ip := l.Attrs().HardwareAddr, netip.MustParseAddr(first(at(1, 3))).As4()
	must(t, bad.space.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		frame := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, mac, ip[:], []byte{255, 255, 255, 255, 255, 255}, ip[:])
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
	}))
	if server, _ := mustGet(t, client.space, first(at(1, 3))+":80"); server != "victim" {
		t.Errorf("answered by %s", server)
	}
}

func TestTasksDoNotReachHostThroughGateway(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	join(machines, "other", 4098, nil, nil)
	a := m.attach("a", "net="+at(1, 2))
	serveIn(t, m.space, 22, "host")
	var ends []string
	for _, network := range []string{"net", "other"} {
		space, err := netns.Open(m.plugin.SpaceOf(m.node.GetId(), network))
		must(t, err)
		defer func() { _ = space.Close() }()
		serveIn(t, space, 22, "sandbox")
		for _, h := range []*netlink.Handle{handle(t, space), handle(t, m.space)} {
			addresses, err := h.AddrList(nil, netlink.FAMILY_V4)
			must(t, err)
			for _, x := range addresses {
				if x.IP.IsLinkLocalUnicast() && x.IP.String() != "169.254.1.1" {
					ends = append(ends, x.IP.String())
				}
			}
		}
	}
	if len(ends) < 4 {
		t.Fatalf("addresses between networks and the host: %v", ends)
	}
	for _, target := range append(ends, "169.254.1.1", "10.64.17.1", "127.0.0.2") {
		if err := dial(a.space, "tcp", target+":22", 300*time.Millisecond); err == nil {
			t.Errorf("a task reached port 22 at %s", target)
		}
	}
	// The same from a task that sends everything to the gateway, loopback addresses too.
	must(t, a.space.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0) }))
	h := handle(t, a.space)
	l, err := h.LinkByName("eth0")
	must(t, err)
	_, loopback, _ := net.ParseCIDR("127.1.0.0/16")
	must(t, h.RouteAdd(&netlink.Route{Dst: loopback, Gw: net.ParseIP("169.254.1.1"), LinkIndex: l.Attrs().Index, Flags: int(netlink.FLAG_ONLINK), Table: unix.RT_TABLE_LOCAL}))
	if err := dial(a.space, "tcp", "127.1.0.1:22", 300*time.Millisecond); err == nil {
		t.Error("a task reached the host's loopback address")
	}
}

// TestStrangersDoNotReachNetworks routes the addresses of a network, and those between it
// and the host, to a node.
func TestStrangersDoNotReachNetworks(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	a := m.attach("a", "net="+at(1, 2))
	a.serve(80)
	h := handle(t, outside)
	hub, err := h.LinkByName("hub")
	must(t, err)
	for _, cidr := range []string{"10.64.0.0/16", "169.254.64.0/18"} {
		_, to, err := net.ParseCIDR(cidr)
		must(t, err)
		must(t, h.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(m.address), LinkIndex: hub.Attrs().Index}))
	}
	host, err := handle(t, m.space).LinkByName(overlay.HostLink(m.node.GetId(), "net"))
	must(t, err)
	ends, err := handle(t, m.space).AddrList(host, netlink.FAMILY_V4)
	must(t, err)
	inside := netip.MustParseAddr(ends[0].IP.String()).Next().String()
	for _, target := range []string{first(at(1, 2)) + ":80", inside + ":80", inside + ":53"} {
		if err := dial(outside, "tcp", target, 300*time.Millisecond); err == nil {
			t.Errorf("%s was reached from outside", target)
		}
	}
}

func TestTaskOnTwoNetworks(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	serveIn(t, outside, 80, "outside")
	join(machines, "inner", 4097, func(n *networkv1.Network) { n.Internal = true }, nil)
	join(machines, "net", 4098, func(n *networkv1.Network) {
		n.Subnets = []string{"10.65.0.0/16"}
		n.NodeAddresses = []string{"10.65.0.1"}
	}, nil)
	both := m.attach("both", "inner="+at(1, 2), "net=10.65.0.2")
	inner, plain := m.attach("inner", "inner="+at(1, 3)), m.attach("plain", "net=10.65.0.3")
	inner.serve(80)
	plain.serve(80)
	for address, want := range map[string]string{first(at(1, 3)) + ":80": "inner", "10.65.0.3:80": "plain", "192.0.2.254:80": "outside"} {
		if server, _ := mustGet(t, both.space, address); server != want {
			t.Errorf("%s is answered by %s", address, server)
		}
	}
	var names []string
	for _, a := range both.response.GetAttachments() {
		names = append(names, a.GetInterface())
	}
	if strings.Join(names, " ") != "eth0 eth1" {
		t.Errorf("interfaces are %v", names)
	}
}

func TestPluginMakesNamespace(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	server := m.attach("server", "net="+at(1, 2))
	server.serve(80)
	request := &networkv1.AttachRequest{TaskId: "a", TaskName: "a", ServiceId: "s", ServiceName: "s", Attachments: []*networkv1.Attachment{{NetworkId: "net", Addresses: []string{first(at(1, 3))}}}}
	response, err := m.plugin.Attach(t.Context(), request)
	must(t, err)
	space, err := netns.Open(response.GetNamespace())
	must(t, err)
	defer func() { _ = space.Close() }()
	if name, _ := mustGet(t, space, first(at(1, 2))+":80"); name != "server" {
		t.Errorf("answered by %s", name)
	}
	again, err := m.plugin.Attach(t.Context(), request)
	must(t, err)
	if again.GetNamespace() != response.GetNamespace() {
		t.Errorf("a repeated call made %s beside %s", again.GetNamespace(), response.GetNamespace())
	}
	must(t, m.plugin.Detach(t.Context(), "a"))
	if _, err := os.Stat(response.GetNamespace()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the task its namespace is there: %v", err)
	}
}

func TestAttachRefusesWhatIsNoNamespaceOfATask(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	for _, path := range []string{m.space.Path, "/proc/self/ns/mnt", "/etc/hosts", "/nothing"} {
		request := &networkv1.AttachRequest{TaskId: "a", TaskName: "a", ServiceId: "s", ServiceName: "s", Namespace: path, Attachments: []*networkv1.Attachment{{NetworkId: "net", Addresses: []string{first(at(1, 3))}}}}
		if _, err := m.plugin.Attach(t.Context(), request); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
}

// TestForwardingIsAllowedWhereOthersForbidIt does to the host's namespace what Docker does:
// what is forwarded is dropped unless a rule of DOCKER-USER accepts it.
func TestForwardingIsAllowedWhereOthersForbidIt(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	serveIn(t, outside, 80, "outside")
	m.nft(`table ip filter {
	chain DOCKER-USER { return; }
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		jump DOCKER-USER
		oifname docker0 ct state established,related accept
		oifname docker0 ip daddr 172.17.0.2 tcp dport 81 accept
		iifname docker0 accept
	}
}`)
	container := m.withoutNetworks()
	serveIn(t, container, 80, "container")
	serveIn(t, container, 81, "published-container")
	ingress(machines, port(8080, 80))
	a := m.attach("a", "ingress="+at(1, 2))
	a.serve(80)
	m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", a)}})
	works := func() {
		t.Helper()
		if server, _ := mustGet(t, outside, m.address+":8080"); server != "a" {
			t.Errorf("answered by %s", server)
		}
		if server, _ := mustGet(t, a.space, "192.0.2.254:80"); server != "outside" {
			t.Errorf("answered by %s", server)
		}
		// What Docker publishes stays open to tasks, and what it does not stays closed.
		if server, _ := mustGet(t, a.space, "172.17.0.2:81"); server != "published-container" {
			t.Errorf("answered by %s", server)
		}
		if err := dial(a.space, "tcp", "172.17.0.2:80", packetPatience); err == nil {
			t.Error("a task reached a port of a container that is not published")
		}
		if server, _ := mustGet(t, container, m.address+":8080"); server != "a" {
			t.Errorf("answered by %s", server)
		}
	}
	works()
	t.Run("rules of an earlier version", func(t *testing.T) {
		prefix := overlay.HostPrefix(m.node.GetId())
		m.nft(fmt.Sprintf(`flush chain ip filter DOCKER-USER
			add rule ip filter DOCKER-USER iifname "%[1]s*" counter accept comment "muster from %[1]s"
			add rule ip filter DOCKER-USER oifname "%[1]s*" counter accept comment "muster to %[1]s"
			add rule ip filter DOCKER-USER return`, prefix))
		_, err := m.plugin.Audit(t.Context())
		must(t, err)
		works()
	})
	m.nft("flush chain ip filter DOCKER-USER; add rule ip filter DOCKER-USER return")
	if err := dial(outside, "tcp", m.address+":8080", packetPatience); err == nil {
		t.Error("forwarding works without the rules: the test has lost its object")
	}
	repairs, err := m.plugin.Audit(t.Context())
	must(t, err)
	if repairs != 1 {
		t.Errorf("%d repairs, want 1", repairs)
	}
	works()
	// Nothing is left in chains of others after the last network, without an audit.
	must(t, m.plugin.Detach(t.Context(), "a"))
	m.apply(&networkv1.ApplyRequest{RemovedNetworks: []string{"ingress"}})
	conn, err := nftables.New(nftables.WithNetNSFd(m.space.FD()))
	must(t, err)
	rules, err := conn.GetRules(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}, &nftables.Chain{Name: "DOCKER-USER"})
	must(t, err)
	if len(rules) != 1 {
		t.Errorf("%d rules are in DOCKER-USER, want the one of before", len(rules))
	}
	m.nft("delete table ip filter")
}

func TestNetworksThatCannotBeServedFailAlone(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	m.encryption.Off = true
	m.restart()
	request := &networkv1.ApplyRequest{Complete: true, Node: m.node, Networks: []*networkv1.Network{
		net10("net", 4097, 1, nil),
		net10("same-vni", 4097, 1, nil),
		net10("encrypted", 4098, 1, func(n *networkv1.Network) { n.Encrypted = true }),
		net10("strange", 4099, 1, func(n *networkv1.Network) { n.Driver = "macvlan" }),
	}}
	failed, err := m.plugin.Apply(t.Context(), request)
	must(t, err)
	for _, id := range []string{"same-vni", "encrypted", "strange"} {
		if failed[id] == nil {
			t.Errorf("network %s did not fail", id)
		}
		e := m.task("on-"+id, id+"="+at(1, 3))
		if _, err := m.plugin.Attach(t.Context(), e.request); err == nil {
			t.Errorf("a task was attached to network %s", id)
		}
	}
	if len(failed) != 3 {
		t.Errorf("failed: %v", failed)
	}
	m.attach("a", "net="+at(1, 2))
}
