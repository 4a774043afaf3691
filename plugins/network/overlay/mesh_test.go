//go:build linux

package overlay_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// ingress makes machines answer ports for a service on the network of published ports.
func ingress(machines []*machine, ports ...*musterv1.PortConfig) {
	join(machines, "ingress", 4097, func(n *networkv1.Network) { n.Ingress = true }, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "ingress", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}, Ports: ports})
	})
}

// apart gives a network a subnet that is not the one of the ingress network.
func apart(n *networkv1.Network) {
	n.Subnets, n.NodeAddresses = []string{"10.65.0.0/16"}, []string{strings.Replace(n.GetNodeAddresses()[0], "10.64.", "10.65.", 1)}
	n.Blocks = []string{strings.Replace(n.GetBlocks()[0], "10.64.", "10.65.", 1)}
}

// web adds a service to the network "net" of a request.
func web(r *networkv1.ApplyRequest) {
	r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.65.0.2"}})
	apartPeers(r)
}

// apartPeers gives peers blocks of that subnet.
func apartPeers(r *networkv1.ApplyRequest) {
	for _, p := range r.GetPeers() {
		p.Blocks = []string{strings.Replace(p.GetBlocks()[0], "10.64.", "10.65.", 1)}
	}
}

func port(published, target uint32) *musterv1.PortConfig {
	return &musterv1.PortConfig{Protocol: musterv1.PortConfig_TCP, PublishedPort: published, TargetPort: target, PublishMode: musterv1.PortConfig_INGRESS}
}

func TestPublishedPortAnswersOnEachNode(t *testing.T) {
	outside, machines := newMachines(t, 3)
	ingress(machines, port(8080, 80))
	a, b := machines[0].attach("a", "ingress="+at(1, 2)), machines[1].attach("b", "ingress="+at(2, 2))
	a.serve(80)
	b.serve(80)
	for _, m := range machines {
		if err := dial(outside, "tcp", m.address+":8080", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s without backends: a connection ended with %v, not refused", m.node.GetId(), err)
		}
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", a, b)}})
	}
	for i, m := range machines {
		if seen := answers(t, outside, m.address+":8080"); len(seen) != 2 {
			t.Errorf("%s is answered by %v", m.node.GetId(), seen)
		}
		if seen := answers(t, outside, "[2001:db8::"+string(rune('1'+i))+"]:8080"); len(seen) != 2 {
			t.Errorf("%s is answered by %v over IPv6", m.node.GetId(), seen)
		}
		for _, address := range []string{m.address, "127.0.0.1"} {
			if seen := answers(t, m.space, address+":8080"); len(seen) != 2 {
				t.Errorf("%s asked itself at %s and is answered by %v", m.node.GetId(), address, seen)
			}
		}
		if err := dial(outside, "tcp", m.address+":80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: a connection to a port that is not published ended with %v", m.node.GetId(), err)
		}
	}
	t.Run("from a task", func(t *testing.T) {
		if seen := answers(t, a.space, machines[0].address+":8080"); len(seen) != 2 {
			t.Errorf("a task that asks its node is answered by %v", seen)
		}
		if seen := answers(t, a.space, machines[2].address+":8080"); len(seen) != 2 {
			t.Errorf("a task that asks another node is answered by %v", seen)
		}
	})
	t.Run("not published any longer", func(t *testing.T) {
		machines[2].apply(&networkv1.ApplyRequest{RemovedServices: []*networkv1.ServiceRef{{NetworkId: "ingress", ServiceId: "web"}}})
		if err := dial(outside, "tcp", machines[2].address+":8080", patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection ended with %v", err)
		}
	})
}

func TestLocalTrafficKeepsClientAddress(t *testing.T) {
	outside, machines := newMachines(t, 2)
	p := port(8080, 80)
	p.ExternalTraffic = musterv1.PortConfig_LOCAL
	ingress(machines, p)
	a := machines[0].attach("a", "ingress="+at(1, 2))
	a.serve(80)
	for _, m := range machines {
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", a)}})
	}
	if _, client := mustGet(t, outside, machines[0].address+":8080"); client != "192.0.2.254" {
		t.Errorf("the task saw %s", client)
	}
	if err := dial(outside, "tcp", machines[1].address+":8080", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to a node without a task ended with %v, not refused", err)
	}
}

func TestHostPortLeadsToTask(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "inner", 4097, func(n *networkv1.Network) { n.Internal = true; n.Subnets = []string{"10.64.0.0/16"} }, nil)
	join(machines, "net", 4098, func(n *networkv1.Network) {
		n.Subnets = []string{"10.65.0.0/16"}
		n.NodeAddresses = []string{"10.65.0.1"}
	}, nil)
	a := m.task("a", "inner="+first(at(1, 2)), "net=10.65.0.2")
	host := &musterv1.PortConfig{Protocol: musterv1.PortConfig_TCP, PublishedPort: 8080, TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}
	a.request.Ports = []*musterv1.PortConfig{host}
	a.attach()
	a.serve(80)
	if server, client := mustGet(t, outside, m.address+":8080"); server != "a" || client != "192.0.2.254" {
		t.Errorf("answered by %s, which saw %s", server, client)
	}
	if server, _ := mustGet(t, m.space, "127.0.0.1:8080"); server != "a" {
		t.Errorf("answered by %s", server)
	}
	t.Run("port is taken", func(t *testing.T) {
		b := m.task("b", "net=10.65.0.3")
		b.request.Ports = []*musterv1.PortConfig{host}
		if _, err := m.plugin.Attach(context.Background(), b.request); err == nil {
			t.Error("a port was published twice")
		}
	})
	t.Run("a new process keeps it", func(t *testing.T) {
		m.restart()
		join(machines[:1], "inner", 4097, func(n *networkv1.Network) { n.Internal = true; n.Subnets = []string{"10.64.0.0/16"} }, func(r *networkv1.ApplyRequest) {
			r.Complete = true
			n := net10("net", 4098, 1, nil)
			n.Subnets, n.NodeAddresses = []string{"10.65.0.0/16"}, []string{"10.65.0.1"}
			r.Networks = append(r.Networks, n)
		})
		if server, _ := mustGet(t, outside, m.address+":8080"); server != "a" {
			t.Errorf("answered by %s", server)
		}
	})
	t.Run("only internal networks", func(t *testing.T) {
		b := m.task("b", "inner="+first(at(1, 3)))
		b.request.Ports = []*musterv1.PortConfig{{Protocol: musterv1.PortConfig_TCP, PublishedPort: 8081, TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
		if _, err := m.plugin.Attach(context.Background(), b.request); err == nil {
			t.Error("a port of a task without a way out was accepted")
		}
	})
	must(t, m.plugin.Detach(context.Background(), "a"))
	if err := dial(outside, "tcp", m.address+":8080", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the task a connection ended with %v", err)
	}
}

// TestLocalTrafficReachesWorkersOnOneMachine lets two workers share a machine. Only the
// second has a task that answers.
func TestLocalTrafficReachesWorkersOnOneMachine(t *testing.T) {
	outside, machines := newMachines(t, 1)
	machines = append(machines, machines[0].beside("node-2", 4790))
	p := port(8080, 80)
	p.ExternalTraffic = musterv1.PortConfig_LOCAL
	ingress(machines, p)
	for i, m := range machines {
		task := m.attach("task-of-"+m.node.GetId(), "ingress="+at(i+1, 2))
		task.serve(80)
		for _, m := range machines {
			m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", task)}})
		}
		if server, client := mustGet(t, outside, "192.0.2.1:8080"); server != task.id || client != "192.0.2.254" {
			t.Errorf("answered by %s, which saw %s; want %s and the client's address", server, client, task.id)
		}
	}
}

// TestNodeKeepsItsOwnPorts publishes ports that the node itself uses.
func TestNodeKeepsItsOwnPorts(t *testing.T) {
	outside, machines := newMachines(t, 2)
	names, err := listenAt(machines[0].space, "127.0.0.53:53")
	must(t, err)
	defer func() { _ = names.Close() }()
	udp := func(published uint32) *musterv1.PortConfig {
		p := port(published, 53)
		p.Protocol = musterv1.PortConfig_UDP
		return p
	}
	own := machines[0].node.GetDataPathPort()
	var tasks []*endpoint
	for i, m := range machines {
		request := joinRequest(machines, i, "ingress", 4097, func(n *networkv1.Network) { n.Ingress = true }, func(r *networkv1.ApplyRequest) {
			r.Services = append(r.Services, &networkv1.Service{NetworkId: "ingress", Id: "web", Name: "web", Ports: ports(port(53, 80), udp(own), udp(5353), port(8080, 80))})
		})
		request.Node = m.node
		failed, err := m.plugin.Apply(t.Context(), request)
		must(t, err)
		if (failed["ingress"] != nil) != (i == 0) {
			t.Errorf("%s: the error about UDP port %d is %v", m.node.GetId(), own, failed["ingress"])
		}
	}
	for i, m := range machines {
		task := m.attach("task-of-"+m.node.GetId(), "ingress="+at(i+1, 2))
		task.serve(80)
		task.echoUDP(53)
		tasks = append(tasks, task)
	}
	m := machines[0]
	request := &networkv1.ApplyRequest{Node: m.node, Backends: []*networkv1.Backends{backends("ingress", "web", tasks...)}}
	_, err = m.plugin.Apply(t.Context(), request)
	must(t, err)
	// The data path works: tasks on both nodes answer.
	if seen := answers(t, outside, m.address+":8080"); len(seen) != 2 {
		t.Errorf("answered by %v", seen)
	}
	conn, err := dialer(outside)(t.Context(), "udp", m.address+":5353")
	must(t, err)
	defer func() { _ = conn.Close() }()
	if _, err := ask(conn); err != nil {
		t.Errorf("another UDP port: %v", err)
	}
	if err := dial(m.space, "tcp", "127.0.0.53:53", patience); err != nil {
		t.Error(err)
	} else if _, err := names.Accept(); err != nil {
		t.Error(err)
	}
	if server, _ := mustGet(t, m.space, "127.0.0.1:53"); server == "" {
		t.Error("127.0.0.1 is answered by nothing")
	}
	host := m.task("host", "ingress="+at(1, 9))
	host.request.Ports = ports(udp(own))
	if _, err := m.plugin.Attach(t.Context(), host.request); err == nil {
		t.Error("a task published the port of the data path")
	}
}

func TestUDPClientsLeaveRemovedBackends(t *testing.T) {
	outside, machines := newMachines(t, 1)
	m := machines[0]
	p := port(5353, 53)
	p.Protocol = musterv1.PortConfig_UDP
	ingress(machines, p)
	join(machines, "net", 4098, apart, web)
	client := m.attach("client", "net=10.65.17.9")
	a, b := m.attach("a", "net=10.65.17.2", "ingress="+at(1, 2)), m.attach("b", "net=10.65.17.3", "ingress="+at(1, 3))
	a.echoUDP(53)
	b.echoUDP(53)
	serve := func(tasks ...*endpoint) {
		t.Helper()
		m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", tasks...), backends("net", "web", tasks...)}})
	}
	serve(a)
	inside, err := dialer(client.space)(t.Context(), "udp", "10.65.0.2:53")
	must(t, err)
	defer func() { _ = inside.Close() }()
	published, err := dialer(outside)(t.Context(), "udp", m.address+":5353")
	must(t, err)
	defer func() { _ = published.Close() }()
	expect := func(want string) {
		t.Helper()
		if got, err := ask(inside); got != want {
			t.Errorf("virtual address: answered by %q, want %q: %v", got, want, err)
		}
		if got, err := ask(published); got != want {
			t.Errorf("published port: answered by %q, want %q: %v", got, want, err)
		}
	}
	expect("a")
	serve(b)
	expect("b")
	// Also without another one: a backend that leaves last gets nothing any longer.
	serve()
	for range 2 {
		if got, err := ask(inside); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("without backends: answer %q, %v", got, err)
		}
	}
	serve(a)
	expect("a")
}

func TestConnectionsOfRemovedBackendsStay(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	join(machines, "net", 4098, apart, web)
	client, a := m.attach("client", "net=10.65.17.9"), m.attach("a", "net=10.65.17.2")
	a.serve(80)
	m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", a)}})
	conn, err := dialer(client.space)(t.Context(), "tcp", "10.65.0.2:80")
	must(t, err)
	defer func() { _ = conn.Close() }()
	m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web")}})
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	must(t, err)
	buffer := make([]byte, 12)
	if _, err := conn.Read(buffer); err != nil || string(buffer) != "HTTP/1.0 200" {
		t.Errorf("answer %q: %v", buffer, err)
	}
	if err := dial(client.space, "tcp", "10.65.0.2:80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection ended with %v", err)
	}
}
