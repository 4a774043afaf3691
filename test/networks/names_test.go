package networks_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestServicesReachEachOther has the tasks of one service ask those of another on three
// machines.
func TestServicesReachEachOther(t *testing.T) {
	m := start(t)
	front := m.network(&musterv1.NetworkSpec{Name: "front"})
	spec := answers("web", 4, "front")
	spec.Task.Networks[0].Aliases = []string{"site"}
	web := m.run(spec, 4)
	clients := m.run(global(answers("client", 0, "front")), len(workers))

	service, err := m.Service(t.Context(), "web")
	ok(t, err)
	if n := len(service.Endpoint.GetVirtualIps()); n != 1 {
		t.Fatalf("the service has %d virtual addresses, want one", n)
	}
	virtual, _, err := net.ParseCIDR(service.Endpoint.VirtualIps[0].Address)
	ok(t, err)
	for _, task := range clients {
		from := m.inside(task)
		m.eventually("names of "+from.name, func(ctx context.Context) error {
			for name, want := range map[string][]string{
				"web": {virtual.String()}, "site": {virtual.String()}, "web.front": {virtual.String()},
				"tasks.web": addresses(web, front), "tasks.client": addresses(clients, front),
			} {
				if got, err := from.lookup(ctx, name); err != nil || !slices.Equal(got, want) {
					return fmt.Errorf("from %s: %s has addresses %v (%w), want %v", from.name, name, got, err, want)
				}
			}
			for _, w := range web {
				if got, err := from.address(ctx, w.Name); err != nil || got != addresses(map[string]*musterv1.Task{"": w}, front)[0] {
					return fmt.Errorf("from %s: %s has address %s (%w)", from.name, w.Name, got, err)
				}
			}
			return nil
		})
		ok(t, from.reachesAll(t.Context(), net.JoinHostPort(virtual.String(), port), web))
		for _, a := range addresses(web, front) {
			answer, err := ask(t.Context(), from.client(false), net.JoinHostPort(a, port))
			ok(t, err)
			if want := addresses(map[string]*musterv1.Task{"": task}, front)[0]; answer.Client != want {
				t.Errorf("a task sees the client as %s, want %s", answer.Client, want)
			}
		}
	}

	t.Run("a switch to names keeps the tasks", func(t *testing.T) {
		ok(t, m.Update(t.Context(), "web", func(s *musterv1.ServiceSpec) {
			s.Endpoint = &musterv1.EndpointSpec{Mode: musterv1.EndpointSpec_DNSRR}
		}))
		for _, task := range clients {
			from := m.inside(task)
			m.eventually("all tasks are behind the name", func(ctx context.Context) error {
				got, err := from.lookup(ctx, "web")
				if want := addresses(web, front); err != nil || !slices.Equal(got, want) {
					return fmt.Errorf("web has addresses %v (%w), want %v", got, err, want)
				}
				return nil
			})
		}
		for id := range m.running("web", 4) {
			if web[id] == nil {
				t.Errorf("task %s was made for the switch", id)
			}
		}
	})
	t.Run("more and fewer tasks", func(t *testing.T) {
		for _, n := range []uint64{6, 2} {
			ok(t, m.Scale(t.Context(), "web", n))
			web := m.running("web", int(n))
			for _, task := range clients {
				from := m.inside(task)
				m.eventually("names follow the tasks", func(ctx context.Context) error {
					got, err := from.lookup(ctx, "tasks.web")
					if want := addresses(web, front); err != nil || !slices.Equal(got, want) {
						return fmt.Errorf("tasks.web has addresses %v (%w), want %v", got, err, want)
					}
					return nil
				})
			}
		}
	})
}

// TestNetworksAreIsolated has two networks with one subnet, and tasks on one, the other,
// and both kinds of network.
func TestNetworksAreIsolated(t *testing.T) {
	m := start(t)
	subnet := func() *musterv1.IPAMOptions {
		return &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{Subnet: "10.200.0.0/24"}}}
	}
	m.network(&musterv1.NetworkSpec{Name: "red", Ipam: subnet()})
	m.network(&musterv1.NetworkSpec{Name: "blue", Ipam: subnet()})
	m.network(&musterv1.NetworkSpec{Name: "closed", Internal: true})
	red := m.run(answers("red", 3, "red"), 3)
	blue := m.run(answers("blue", 3, "blue"), 3)
	both := m.run(answers("both", 1, "red", "closed"), 1)
	closed := m.run(global(answers("closed", 0, "closed")), len(workers))

	for _, c := range []struct {
		own, other     map[string]*musterv1.Task
		name, stranger string
	}{{red, blue, "red", "blue"}, {blue, red, "blue", "red"}} {
		for _, task := range c.own {
			from := m.inside(task)
			m.eventually(c.name+" is reached", func(ctx context.Context) error {
				virtual, err := from.address(ctx, c.name)
				if err != nil {
					return err
				}
				return from.reachesAll(ctx, net.JoinHostPort(virtual, port), c.own)
			})
			if got, err := from.lookup(t.Context(), c.stranger); err == nil {
				t.Errorf("from %s: %s has addresses %v", from.name, c.stranger, got)
			}
		}
	}
	for _, task := range both {
		from := m.inside(task)
		m.eventually("both networks are reached", func(ctx context.Context) error {
			for name, tasks := range map[string]map[string]*musterv1.Task{"red": red, "closed": closed} {
				virtual, err := from.address(ctx, name)
				if err != nil {
					return err
				}
				if err := from.reachesAll(ctx, net.JoinHostPort(virtual, port), tasks); err != nil {
					return err
				}
			}
			return nil
		})
	}

	t.Run("a way out", func(t *testing.T) {
		l, err := m.net.Hosts()[0].Listen(t.Context(), "tcp", m.net.Hosts()[0].Address+":9000")
		ok(t, err)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_ = conn.Close()
			}
		}()
		defer func() { ok(t, l.Close()) }()
		dial := func(from *inside) error {
			ctx, cancel := context.WithTimeout(t.Context(), requestTimeout/4)
			defer cancel()
			conn, err := from.DialContext(ctx, "tcp", l.Addr().String())
			if err == nil {
				err = conn.Close()
			}
			return err
		}
		for _, task := range red {
			if err := dial(m.inside(task)); err != nil {
				t.Errorf("from %s: %v", task.Name, err)
			}
		}
		for _, task := range closed {
			if err := dial(m.inside(task)); err == nil {
				t.Errorf("from %s, on an internal network only, the outside is reached", task.Name)
			}
		}
	})
}
