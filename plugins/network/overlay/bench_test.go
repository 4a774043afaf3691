//go:build linux

package overlay_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// many is a network with services of ten backends each.
func many(m *machine, services int) *networkv1.ApplyRequest {
	r := &networkv1.ApplyRequest{Complete: true, Node: m.node, Networks: []*networkv1.Network{net10("net", 4097, 1, nil)}}
	virtual, address := netip.MustParseAddr("10.64.0.2"), netip.MustParseAddr("10.64.32.0")
	for i := range services {
		id := fmt.Sprintf("service-%04d", i)
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: id, Name: id, VirtualIps: []string{virtual.String()}})
		virtual = virtual.Next()
		b := &networkv1.Backends{NetworkId: "net", ServiceId: id, Complete: true}
		for k := range 10 {
			b.Backends = append(b.Backends, &networkv1.Backend{TaskId: fmt.Sprintf("%s.%d", id, k), NodeId: "node-9", Addresses: []string{address.String()}})
			address = address.Next()
		}
		r.Backends = append(r.Backends, b)
	}
	return r
}

// BenchmarkColdServices programs 1,000 services of ten backends into an empty network.
func BenchmarkColdServices(b *testing.B) {
	_, machines := newMachines(b, 1)
	m := machines[0]
	full := many(m, 1000)
	for b.Loop() {
		b.StopTimer()
		m.apply(&networkv1.ApplyRequest{Complete: true})
		m.apply(&networkv1.ApplyRequest{Complete: true, Networks: full.GetNetworks()})
		b.StartTimer()
		m.apply(&networkv1.ApplyRequest{Services: full.GetServices(), Backends: full.GetBackends()})
	}
}

// BenchmarkAdoptedServices lets a new process find 1,000 services of ten backends as they
// must be.
func BenchmarkAdoptedServices(b *testing.B) {
	_, machines := newMachines(b, 1)
	m := machines[0]
	m.apply(many(m, 1000))
	for b.Loop() {
		b.StopTimer()
		m.restart()
		b.StartTimer()
		m.apply(many(m, 1000))
	}
}

// BenchmarkOneBackend adds a backend to one of 1,000 services and removes it.
func BenchmarkOneBackend(b *testing.B) {
	_, machines := newMachines(b, 1)
	m := machines[0]
	m.apply(many(m, 1000))
	var took []time.Duration
	for b.Loop() {
		for _, change := range []*networkv1.Backends{
			{NetworkId: "net", ServiceId: "service-0500", Backends: []*networkv1.Backend{{TaskId: "more", NodeId: "node-9", Addresses: []string{"10.64.200.1"}}}},
			{NetworkId: "net", ServiceId: "service-0500", Removed: []string{"more"}},
		} {
			began := time.Now()
			m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{change}})
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/change-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/change-p99")
}

// BenchmarkAttach attaches a task and detaches it.
func BenchmarkAttach(b *testing.B) {
	_, machines := newMachines(b, 1)
	m := machines[0]
	join(machines, "net", 4097, nil, nil)
	e := m.task("a", "net="+at(1, 2))
	for b.Loop() {
		e.attach()
		must(b, m.plugin.Detach(b.Context(), "a"))
	}
}

// BenchmarkThroughput sends over TCP between tasks on two machines: straight, through a
// virtual address, over an encrypted network, and between the machines over a VXLAN device
// without anything else.
func BenchmarkThroughput(b *testing.B) {
	_, machines := newMachines(b, 2)
	join(machines, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}})
	})
	client, server := machines[0].attach("client", "net="+at(1, 2)), machines[1].attach("server", "net="+at(2, 2))
	machines[0].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", server)}})
	for i, m := range machines {
		h, peer := handle(b, m.space), machines[1-i]
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = "plain", 1450
		must(b, h.LinkAdd(&netlink.Vxlan{LinkAttrs: attributes, VxlanId: 9, Port: 9999, SrcAddr: net.ParseIP(m.address), Group: net.ParseIP(peer.address), Learning: true}))
		address(b, h, "plain", fmt.Sprintf("198.51.100.%d/24", i+1))
		b.Cleanup(func() {
			l, err := h.LinkByName("plain")
			must(b, err)
			must(b, h.LinkDel(l))
		})
	}
	join(machines, "closed", 4098, encrypted, introduce(b, machines))
	closedClient, closedServer := machines[0].attach("closed-client", "closed="+at(1, 2)), machines[1].attach("closed-server", "closed="+at(2, 2))
	for _, c := range []struct {
		name     string
		from, to *netns.Namespace
		address  string
	}{
		{"encrypted", closedClient.space, closedServer.space, first(at(2, 2))},
		{"plain-vxlan", machines[0].space, machines[1].space, "198.51.100.2"},
		{"task-to-task", client.space, server.space, first(at(2, 2))},
		{"virtual-address", client.space, server.space, "10.64.0.2"},
	} {
		b.Run(c.name, func(b *testing.B) { throughput(b, c.from, c.to, c.address) })
	}
}

func throughput(b *testing.B, from, to *netns.Namespace, address string) {
	var listener net.Listener
	must(b, to.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":5201")
		return err
	}))
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			// Without splice, which /dev/null would get.
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 1<<20))
			err = errors.Join(err, conn.Close())
		}
		received <- err
	}()
	conn, err := dialer(from)(b.Context(), "tcp", address+":5201")
	must(b, err)
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := conn.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	must(b, conn.(*net.TCPConn).CloseWrite())
	must(b, <-received)
	must(b, errors.Join(conn.Close(), listener.Close()))
}
