//go:build linux

package overlay_test

import (
	"net"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func ports(all ...*musterv1.PortConfig) []*musterv1.PortConfig { return all }

// TestIngressNetworkKeepsTasksApart gives services of different owners published ports, and
// lets a task of one try to reach the others past those ports.
func TestIngressNetworkKeepsTasksApart(t *testing.T) {
	outside, machines := newMachines(t, 2)
	serveIn(t, outside, 80, "outside")
	join(machines, "ingress", 4097, func(n *networkv1.Network) { n.Ingress = true }, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{
			NetworkId: "ingress", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2", "fd00:64::2"}, Ports: ports(port(8080, 80)),
		})
	})
	bad := machines[0].attach("bad", "ingress="+at(1, 9))
	near, far := machines[0].attach("near", "ingress="+at(1, 2)), machines[1].attach("far", "ingress="+at(2, 2))
	for _, e := range []*endpoint{near, far} {
		e.serve(80)
		e.serve(81)
		e.echoUDP(53)
	}
	for _, m := range machines {
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", near, far)}})
	}
	for _, address := range []string{first(at(1, 2)), second(at(1, 2)), first(at(2, 2)), second(at(2, 2)), "10.64.0.2", "fd00:64::2"} {
		for _, port := range []string{"80", "81"} {
			if err := dial(bad.space, "tcp", net.JoinHostPort(address, port), packetPatience); err == nil {
				t.Errorf("a task of another service reached port %s at %s", port, address)
			}
		}
		if reachesUDP(bad.space, net.JoinHostPort(address, "53")) {
			t.Errorf("a task of another service reached the UDP port 53 at %s", address)
		}
	}
	for _, m := range machines {
		for _, client := range []*endpoint{bad, near} {
			if seen := answers(t, client.space, m.address+":8080"); len(seen) != 2 {
				t.Errorf("the published port of %s answers %s with %v", m.node.GetId(), client.id, seen)
			}
		}
	}
	if server, _ := mustGet(t, bad.space, "192.0.2.254:80"); server != "outside" {
		t.Errorf("a task of the ingress network alone was answered by %s, not from outside", server)
	}
}

// TestPublishedPortOfInternalNetworkIsNoWayOut publishes a port of a task that is otherwise
// on an internal network only.
func TestPublishedPortOfInternalNetworkIsNoWayOut(t *testing.T) {
	outside, machines := newMachines(t, 2)
	serveIn(t, outside, 80, "outside")
	ingress(machines, port(8080, 80))
	join(machines, "inner", 4098, func(n *networkv1.Network) { apart(n); n.Internal = true }, apartPeers)
	join(machines[:1], "open", 4099, func(n *networkv1.Network) {
		n.Subnets, n.Blocks, n.NodeAddresses = []string{"10.66.0.0/16"}, []string{"10.66.16.0/26"}, []string{"10.66.16.1"}
	}, nil)
	closed := machines[0].attach("closed", "inner=10.65.17.2", "ingress="+at(1, 2))
	open := machines[0].attach("open", "inner=10.65.17.3", "open=10.66.16.3", "ingress="+at(1, 3))
	closed.serve(80)
	expect := func(t *testing.T) {
		t.Helper()
		for _, m := range machines {
			m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", closed)}})
			if server, _ := mustGet(t, outside, m.address+":8080"); server != "closed" {
				t.Errorf("the published port of %s is answered by %s", m.node.GetId(), server)
			}
		}
		if server, _ := mustGet(t, open.space, "10.65.17.2:80"); server != "closed" {
			t.Errorf("the internal network is answered by %s", server)
		}
		for _, address := range []string{"192.0.2.254:80", "[2001:db8::fe]:80", machines[1].address + ":8080"} {
			if err := dial(closed.space, "tcp", address, packetPatience); err == nil {
				t.Errorf("a task of an internal network reached %s", address)
			}
		}
		if server, _ := mustGet(t, open.space, "192.0.2.254:80"); server != "outside" {
			t.Errorf("a task that is also on an open network was answered by %s", server)
		}
	}
	expect(t)
	t.Run("with a new process", func(t *testing.T) {
		m := machines[0]
		m.restart()
		m.apply(joinRequest(machines, 0, "ingress", 4097, func(n *networkv1.Network) { n.Ingress = true }, func(r *networkv1.ApplyRequest) {
			r.Complete = true
			r.Networks = append(r.Networks,
				net10("inner", 4098, 1, func(n *networkv1.Network) { apart(n); n.Internal = true }),
				net10("open", 4099, 1, func(n *networkv1.Network) {
					n.Subnets, n.Blocks, n.NodeAddresses = []string{"10.66.0.0/16"}, []string{"10.66.16.0/26"}, []string{"10.66.16.1"}
				}))
			r.Services = append(r.Services, &networkv1.Service{NetworkId: "ingress", Id: "web", Name: "web", Ports: ports(port(8080, 80))})
		}))
		expect(t)
	})
}
