//go:build linux

package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// tables returns the names of a namespace's nftables tables.
func tables(t testing.TB, space *netns.Namespace) []string {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(space.FD()))
	must(t, err)
	all, err := conn.ListTables()
	must(t, err)
	var names []string
	for _, table := range all {
		names = append(names, table.Name)
	}
	return names
}

// ping sends an echo request and waits for the answer.
func ping(space *netns.Namespace, address string) error {
	to := netip.MustParseAddr(address)
	network, listen, kind, protocol := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), 1
	if to.Is6() {
		network, listen, kind, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, 58
	}
	return space.Do(func() error {
		conn, err := icmp.ListenPacket(network, listen)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		request, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte("muster")}}).Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		for buffer := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return fmt.Errorf("ping %s: %w", address, err)
			}
			m, err := icmp.ParseMessage(protocol, buffer[:n])
			if err != nil {
				return err
			}
			if (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) && from.String() == address {
				return nil
			}
		}
	})
}

func TestTasksReachEachOther(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, nil)
	a1, a2 := machines[0].attach("a1", "net="+at(1, 2)), machines[0].attach("a2", "net="+at(1, 3))
	b := machines[1].attach("b", "net="+at(2, 2))
	a2.serve(80)
	b.serve(80)
	for _, c := range []struct {
		name, address, server, client string
	}{
		{"same node", first(at(1, 3)) + ":80", "a2", first(at(1, 2))},
		{"other node", first(at(2, 2)) + ":80", "b", first(at(1, 2))},
		{"same node, IPv6", "[" + second(at(1, 3)) + "]:80", "a2", second(at(1, 2))},
		{"other node, IPv6", "[" + second(at(2, 2)) + "]:80", "b", second(at(1, 2))},
	} {
		server, client, err := get(a1.space, c.address)
		if err != nil || server != c.server || client != c.client {
			t.Errorf("%s: answered by %q to %q: %v; want %q, %q", c.name, server, client, err, c.server, c.client)
		}
	}
	if a1.response.GetAttachments()[0].GetInterface() != "eth0" {
		t.Errorf("interface is %q", a1.response.GetAttachments()[0].GetInterface())
	}
}

// TestPeerOfOtherIPVersionFailsAlone gives one of a node's peers a data path address that
// the node cannot send to, before and after the network works.
func TestPeerOfOtherIPVersionFailsAlone(t *testing.T) {
	_, machines := newMachines(t, 2)
	core, logs := observer.New(zap.ErrorLevel)
	m := machines[0]
	m.log = zap.New(core)
	m.restart()
	strange := &networkv1.Peer{NetworkId: "net", NodeId: "strange", DataPathAddress: "2001:db8::9", DataPathPort: 4789, Blocks: blocks(9)}
	m.apply(joinRequest(machines, 0, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
		r.Complete = true
		r.Peers = append(r.Peers, strange)
	}))
	machines[1].apply(joinRequest(machines, 1, "net", 4097, nil, nil))
	a, b := m.attach("a", "net="+at(1, 2)), machines[1].attach("b", "net="+at(2, 2))
	b.serve(80)
	expect := func(reports int) {
		t.Helper()
		if server, _ := mustGet(t, a.space, first(at(2, 2))+":80"); server != "b" {
			t.Errorf("answered by %s", server)
		}
		if repairs, err := m.plugin.Audit(t.Context()); err != nil || repairs != 0 {
			t.Errorf("audit made %d repairs: %v", repairs, err)
		}
		if logs.Len() != reports {
			t.Errorf("%d log entries, want %d: %v", logs.Len(), reports, logs.All())
		}
		for _, e := range logs.All() {
			if text := fmt.Sprint(e.ContextMap()); !strings.Contains(text, "node strange cannot be reached") {
				t.Errorf("log entry %q %s does not name the peer", e.Message, text)
			}
		}
	}
	expect(1)
	strange.DataPathAddress = "192.0.2.9"
	m.apply(&networkv1.ApplyRequest{Peers: []*networkv1.Peer{strange}})
	expect(1)
	strange.DataPathAddress = "2001:db8::9"
	m.apply(&networkv1.ApplyRequest{Peers: []*networkv1.Peer{strange}})
	expect(2)
}

func TestVirtualAddressReachesEachBackend(t *testing.T) {
	_, machines := newMachines(t, 2)
	var a1, a2, b *endpoint
	service := &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2", "fd00:64::2"}}
	join(machines, "net", 4097, nil, func(r *networkv1.ApplyRequest) { r.Services = append(r.Services, service) })
	a1, a2 = machines[0].attach("a1", "net="+at(1, 2)), machines[0].attach("a2", "net="+at(1, 3))
	b = machines[1].attach("b", "net="+at(2, 2))
	for _, e := range []*endpoint{a1, a2, b} {
		e.serve(80)
		e.serve(81)
	}
	t.Run("without backends", func(t *testing.T) {
		if err := dial(a1.space, "tcp", "10.64.0.2:80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection ended with %v, not refused", err)
		}
		if err := dial(a1.space, "tcp", "[fd00:64::2]:80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection of IPv6 ended with %v, not refused", err)
		}
	})
	for _, m := range machines {
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", a1, a2, b)}})
	}
	for _, client := range []*endpoint{a1, a2, b} {
		for _, address := range []string{"10.64.0.2:80", "10.64.0.2:81", "[fd00:64::2]:80"} {
			if seen := answers(t, client.space, address); len(seen) != 3 {
				t.Errorf("%s at %s is answered by %v", client.id, address, seen)
			}
		}
		if err := ping(client.space, "10.64.0.2"); err != nil {
			t.Errorf("%s: %v", client.id, err)
		}
		if err := ping(client.space, "fd00:64::2"); err != nil {
			t.Errorf("%s: %v", client.id, err)
		}
	}
	t.Run("one port", func(t *testing.T) {
		if err := dial(a1.space, "tcp", "10.64.0.2:82", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port without a listener ended with %v", err)
		}
	})
	t.Run("fewer backends", func(t *testing.T) {
		machines[1].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{NetworkId: "net", ServiceId: "web", Removed: []string{"a1", "b"}}}})
		if seen := answers(t, b.space, "10.64.0.2:80"); len(seen) != 1 || seen["a2"] == 0 {
			t.Errorf("answered by %v, want a2 alone", seen)
		}
	})
	t.Run("no backend any longer", func(t *testing.T) {
		machines[1].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{NetworkId: "net", ServiceId: "web", Removed: []string{"a2"}}}})
		if err := dial(b.space, "tcp", "10.64.0.2:80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection ended with %v, not refused", err)
		}
	})
}

func TestClientAddressIsKeptInTheNetwork(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}})
	})
	a, b := machines[0].attach("a", "net="+at(1, 2)), machines[1].attach("b", "net="+at(2, 2))
	b.serve(80)
	machines[0].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", b)}})
	if _, client := mustGet(t, a.space, "10.64.0.2:80"); client != first(at(1, 2)) {
		t.Errorf("the backend saw %s", client)
	}
}

func TestNetworksWithOneSubnetAreIsolated(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "red", 4097, nil, nil)
	join(machines, "blue", 4098, nil, nil)
	for _, network := range []string{"red", "blue"} {
		machines[1].attach(network+"-server", network+"="+at(2, 2)).serve(80)
	}
	red, blue := machines[0].attach("red-client", "red="+at(1, 2)), machines[0].attach("blue-client", "blue="+at(1, 2))
	for client, want := range map[*endpoint]string{red: "red-server", blue: "blue-server"} {
		if server, _ := mustGet(t, client.space, first(at(2, 2))+":80"); server != want {
			t.Errorf("%s was answered by %s", client.id, server)
		}
	}
	only := machines[1].attach("red-only", "red="+at(2, 9))
	only.serve(80)
	if err := dial(blue.space, "tcp", first(at(2, 9))+":80", time.Second); err == nil {
		t.Error("a task reached a task of another network")
	}
}

func TestEgress(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	serveIn(t, outside, 80, "outside")
	join(machines, "open", 4097, nil, nil)
	join(machines, "closed", 4098, func(n *networkv1.Network) { n.Internal = true }, nil)
	open, closed := m.attach("open", "open="+at(1, 2)), m.attach("closed", "closed="+at(1, 2))
	if _, client := mustGet(t, open.space, "192.0.2.254:80"); client != m.address {
		t.Errorf("outside saw %s, not the node", client)
	}
	if err := dial(closed.space, "tcp", "192.0.2.254:80", time.Second); err == nil {
		t.Error("a task of an internal network reached what is outside")
	}
}

func TestPathMTULeavesRoomForVXLAN(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, nil)
	a, b := machines[0].attach("a", "net="+at(1, 2)), machines[1].attach("b", "net="+at(2, 2))
	server := b.listenUDP(9)
	conn, err := dialer(a.space)(t.Context(), "udp", first(at(2, 2))+":9")
	must(t, err)
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
	}))
	// 1,422 bytes and 28 of headers are 1,450.
	repeat(t, func() error {
		if _, err := conn.Write(make([]byte, 1422)); err != nil {
			return err
		}
		if err := server.SetReadDeadline(time.Now().Add(packetPatience)); err != nil {
			return err
		}
		n, _, err := server.ReadFrom(make([]byte, 2000))
		if err == nil && n != 1422 {
			t.Errorf("received %d bytes", n)
		}
		return err
	})
	if _, err := conn.Write(make([]byte, 1423)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet that is too large ended with %v", err)
	}
}

// TestSeveralNodesOnOneMachine lets nodes share a machine, each with a UDP port of its own.
func TestSeveralNodesOnOneMachine(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1"} {
		t.Run("at "+address, func(t *testing.T) {
			outside, machines := newMachines(t, 1)
			if address != "" {
				machines[0].address, machines[0].node.DataPathAddress = address, address
			}
			machines = append(machines, machines[0].beside("node-2", 4790))
			ingress(machines, port(8080, 80))
			join(machines, "net", 4098, apart, web)
			a, b := machines[0].attach("a", "net=10.65.17.2", "ingress="+at(1, 2)), machines[1].attach("b", "net=10.65.18.2", "ingress="+at(2, 2))
			a.serve(80)
			b.serve(80)
			for _, m := range machines {
				m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", a, b), backends("net", "web", a, b)}})
			}
			for _, c := range []struct{ from, to *endpoint }{{a, b}, {b, a}} {
				if server, _ := mustGet(t, c.from.space, c.to.request.GetAttachments()[0].GetAddresses()[0]+":80"); server != c.to.id {
					t.Errorf("%s was answered by %s", c.from.id, server)
				}
				if seen := answers(t, c.from.space, "10.65.0.2:80"); len(seen) != 2 {
					t.Errorf("%s is answered by %v", c.from.id, seen)
				}
			}
			for _, space := range []*netns.Namespace{outside, machines[0].space} {
				if seen := answers(t, space, "192.0.2.1:8080"); len(seen) != 2 {
					t.Errorf("the published port is answered by %v", seen)
				}
			}
		})
	}
}
