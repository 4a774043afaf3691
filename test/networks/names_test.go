package networks_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
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

// TestNamesAreAnsweredWithoutWorkers kills network plugins, and then workers and plugins,
// while tasks ask for names and make connections.
func TestNamesAreAnsweredWithoutWorkers(t *testing.T) {
	m := start(t)
	front := m.network(&musterv1.NetworkSpec{Name: "front"})
	web := m.run(answers("web", 3, "front"), 3)
	clients := m.run(global(answers("client", 0, "front")), len(workers))
	var from []*inside
	for _, task := range clients {
		from = append(from, m.inside(task))
	}
	named := func(ctx context.Context, i *inside) error {
		got, err := i.lookup(ctx, "tasks.web")
		if want := addresses(web, front); err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("from %s: tasks.web has addresses %v, want %v", i.name, got, want)
		}
		return err
	}
	allNamed := func(ctx context.Context) error {
		for _, i := range from {
			if err := named(ctx, i); err != nil {
				return err
			}
		}
		return nil
	}
	m.eventually("names are known", allNamed)
	plugins := func(want int) func(context.Context) error {
		return func(context.Context) error {
			found, err := m.plugins()
			if err == nil && len(found) != want {
				err = fmt.Errorf("%d network plugins run, want %d", len(found), want)
			}
			return err
		}
	}
	kill := func(processes []rig.Process, err error) {
		t.Helper()
		ok(t, err)
		for _, p := range processes {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
	}
	before, err := m.nameServers()
	ok(t, err)
	if len(before) != len(workers) {
		t.Fatalf("%d processes answer for names, want %d", len(before), len(workers))
	}
	// loaded calls a function under a load of questions and new connections.
	loaded := func(call func()) {
		t.Helper()
		var group sync.WaitGroup
		var stopped atomic.Bool
		var asked atomic.Int64
		l := &load{}
		for _, i := range from {
			virtual, err := i.address(t.Context(), "web")
			ok(t, err)
			client := i.client(false)
			group.Go(func() {
				for !stopped.Load() {
					l.once(t.Context(), client, "from "+i.name, net.JoinHostPort(virtual, port))
				}
			})
			group.Go(func() {
				for !stopped.Load() {
					asked.Add(1)
					if err := named(t.Context(), i); err != nil {
						l.mu.Lock()
						l.failed = append(l.failed, err)
						l.mu.Unlock()
					}
				}
			})
		}
		call()
		stopped.Store(true)
		group.Wait()
		t.Logf("%d questions, %d requests", asked.Load(), l.asked.Load())
		if n := len(l.failed); n > 0 {
			t.Errorf("%d questions and requests failed, the first: %v", n, errors.Join(l.failed[:min(n, 5)]...))
		}
	}
	loaded(func() {
		was, err := m.plugins()
		kill(was, err)
		m.eventually("other network plugins run", func(ctx context.Context) error {
			now, err := m.plugins()
			for _, p := range was {
				if slices.ContainsFunc(now, func(other rig.Process) bool { return other.PID == p.PID }) {
					return fmt.Errorf("%s has not ended", p)
				}
			}
			return errors.Join(err, plugins(len(workers))(ctx))
		})
	})
	loaded(func() {
		// The workers first: they would start the plugins again.
		for _, w := range workers {
			ok(t, m.Process(w).Kill())
		}
		kill(m.plugins())
		m.eventually("no plugin runs", plugins(0))
		for range 20 {
			ok(t, allNamed(t.Context()))
		}
		for _, w := range workers {
			ok(t, m.StartNode(w))
		}
		m.eventually("all nodes are ready", m.Ready)
		m.eventually("network plugins run", plugins(len(workers)))
	})
	m.eventually("names are as before", allNamed)
	after, err := m.nameServers()
	ok(t, err)
	for _, p := range after {
		if !slices.ContainsFunc(before, func(other rig.Process) bool { return other.PID == p.PID }) {
			t.Errorf("%s was started in the place of another", p)
		}
	}
	kill(after, nil)
	m.eventually("names are answered after name servers were killed", allNamed)
}
