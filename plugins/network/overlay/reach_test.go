//go:build linux

package overlay_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// TestOnlyPublishedPortsLeadIntoNetworks tries all ways to a service's task, which listens on a port that is
// published and on one that is not.
func TestOnlyPublishedPortsLeadIntoNetworks(t *testing.T) {
	outside, machines := newMachines(t, 2)
	move := func(addresses []string) {
		for i, a := range addresses {
			addresses[i] = strings.NewReplacer("10.64.", "10.65.", "fd00:64:", "fd00:65:").Replace(a)
		}
	}
	udp := port(8080, 80)
	udp.Protocol = musterv1.PortConfig_UDP
	join(machines, "ingress", 4096, func(n *networkv1.Network) {
		n.Ingress = true
		move(n.Subnets)
		move(n.Blocks)
		move(n.NodeAddresses)
	}, func(r *networkv1.ApplyRequest) {
		for _, p := range r.GetPeers() {
			move(p.Blocks)
		}
		r.Services = append(r.Services, &networkv1.Service{
			NetworkId: "ingress", Id: "web", Name: "web", VirtualIps: []string{"10.65.0.2", "fd00:65::2"}, Ports: ports(port(8080, 80), udp),
		})
	})
	join(machines, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2", "fd00:64::2"}})
	})
	join(machines, "other", 4098, nil, nil)
	server := machines[0].attach("server", "net="+at(1, 2), "ingress=10.65.17.2,fd00:65::11:2")
	for _, port := range []int{80, 81} {
		server.serve(port)
		server.echoUDP(port)
	}
	for _, m := range machines {
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", server), backends("ingress", "web", server)}})
	}
	// The host outside sends what is meant for networks to the node.
	h := handle(t, outside)
	hub, err := h.LinkByName("hub")
	must(t, err)
	for cidr, gateway := range map[string]string{"10.64.0.0/15": machines[0].address, "fd00:64::/31": "2001:db8::1"} {
		_, to, err := net.ParseCIDR(cidr)
		must(t, err)
		must(t, h.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(gateway), LinkIndex: hub.Attrs().Index}))
	}
	mesh := machines[0].attach("mesh", "ingress=10.65.17.9,fd00:65::11:9")
	clients := []struct {
		name    string
		space   *netns.Namespace
		network bool
	}{
		{"a task of the network, same node", machines[0].attach("near", "net="+at(1, 3)).space, true},
		{"a task of the network, other node", machines[1].attach("far", "net="+at(2, 3)).space, true},
		{"a task of another network, same node", machines[0].attach("near-stranger", "other="+at(1, 4)).space, false},
		{"a task of another network, other node", machines[1].attach("far-stranger", "other="+at(2, 4)).space, false},
		{"a task with another published port", mesh.space, false},
		{"a host outside", outside, false},
		{"the task's node", machines[0].space, false},
		{"another node", machines[1].space, false},
	}
	targets := []struct {
		name      string
		addresses []string
		port      string
		// all says that everyone reaches the target, and network that tasks of the network do.
		all, network bool
	}{
		{"virtual address, published port", []string{"10.64.0.2", "fd00:64::2"}, "80", false, true},
		{"virtual address, other port", []string{"10.64.0.2", "fd00:64::2"}, "81", false, true},
		{"task, published port", []string{"10.64.17.2", "fd00:64::11:2"}, "80", false, true},
		{"task, other port", []string{"10.64.17.2", "fd00:64::11:2"}, "81", false, true},
		{"virtual address on ingress", []string{"10.65.0.2", "fd00:65::2"}, "80", false, false},
		{"task on ingress", []string{"10.65.17.2", "fd00:65::11:2"}, "80", false, false},
		{"node, published port", []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, "8080", true, true},
		{"node, target port", []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, "80", false, false},
		{"node, other port", []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, "81", false, false},
	}
	for _, c := range clients {
		for _, target := range targets {
			want := target.all || target.network && c.network
			for _, a := range target.addresses {
				address := net.JoinHostPort(a, target.port)
				wait := packetPatience
				if want {
					wait = patience
				}
				if err := dial(c.space, "tcp", address, wait); (err == nil) != want {
					t.Errorf("%s to %s: TCP to %s: %v; want reached = %t", c.name, target.name, address, err, want)
				}
				reached := false
				if want {
					conn, err := dialer(c.space)(t.Context(), "udp", address)
					must(t, err)
					name, _ := ask(conn)
					reached = name == server.id
					must(t, conn.Close())
				} else {
					reached = reachesUDP(c.space, address)
				}
				if reached != want {
					t.Errorf("%s to %s: UDP to %s: reached = %t, want %t", c.name, target.name, address, reached, want)
				}
			}
		}
	}
}

// reachesUDP sends a packet and reports whether it is answered. A network that cannot be
// reached gives no answer either.
func reachesUDP(space *netns.Namespace, address string) bool {
	conn, err := dialer(space)(context.Background(), "udp", address)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprint(conn, "question"); err != nil {
		return false
	}
	if err := conn.SetReadDeadline(time.Now().Add(packetPatience)); err != nil {
		return false
	}
	n, err := conn.Read(make([]byte, 100))
	return err == nil && n > 0
}
