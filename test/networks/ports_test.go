package networks_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// publish has a service publish its port.
func publish(spec *musterv1.ServiceSpec, ports ...*musterv1.PortConfig) *musterv1.ServiceSpec {
	for _, p := range ports {
		p.TargetPort = 8080
	}
	spec.Endpoint = &musterv1.EndpointSpec{Ports: ports}
	return spec
}

// published returns the published port of a service in a mode.
func published(s *musterv1.Service, mode musterv1.PortConfig_PublishMode) string {
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.PublishMode == mode {
			return strconv.Itoa(int(p.PublishedPort))
		}
	}
	return "0"
}

// TestPublishedPortAnswersOnEveryMachine publishes a port of a service that runs on one
// machine only.
func TestPublishedPortAnswersOnEveryMachine(t *testing.T) {
	m := start(t)
	spec := publish(answers("web", 2),
		&musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8088},
		&musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8088, Protocol: musterv1.PortConfig_UDP})
	spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.id==" + m.Nodes["one"]}}
	web := m.run(spec, 2)
	outside := &inside{name: "outside", Namespace: &m.net.Hosts()[0].Namespace}
	for _, w := range workers {
		m.eventually("machine "+w+" answers", func(ctx context.Context) error {
			return outside.reachesAll(ctx, net.JoinHostPort(m.hosts[w].Address, "8088"), web)
		})
		// From the machine itself, too.
		ok(t, m.machine(w).reachesAll(t.Context(), net.JoinHostPort(m.hosts[w].Address, "8088"), web))
	}
	for _, w := range workers {
		// What is not published is not reached.
		ok(t, outside.unreachable(t.Context(), net.JoinHostPort(m.hosts[w].Address, port)))
	}

	t.Run("a port that is chosen, and one of the node", func(t *testing.T) {
		both := publish(global(answers("both", 0)),
			&musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS},
			&musterv1.PortConfig{PublishMode: musterv1.PortConfig_HOST, PublishedPort: 8099})
		tasks := m.run(both, len(workers))
		service, err := m.Service(t.Context(), "both")
		ok(t, err)
		chosen := published(service, musterv1.PortConfig_INGRESS)
		if n, _ := strconv.Atoi(chosen); n < 30000 || n > 32767 {
			t.Fatalf("port %s was chosen, want one from 30000 to 32767", chosen)
		}
		for _, w := range workers {
			m.eventually("machine "+w+" answers", func(ctx context.Context) error {
				if err := outside.reachesAllOverTCP(ctx, net.JoinHostPort(m.hosts[w].Address, chosen), tasks); err != nil {
					return err
				}
				answer, err := ask(ctx, outside.client(false), net.JoinHostPort(m.hosts[w].Address, "8099"))
				if err != nil {
					return err
				}
				if task := tasks[answer.Task]; task == nil || task.NodeId != m.Nodes[w] {
					return fmt.Errorf("task %s answers at the port of node %s", answer.Task, w)
				}
				return nil
			})
		}
	})
	t.Run("the PROXY protocol", func(t *testing.T) {
		proxied := m.run(publish(answers("proxied", 3), &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8066, ProxyProtocol: true}), 3)
		ctx, cancel := context.WithCancel(t.Context())
		l := &load{cancel: cancel}
		for _, w := range workers {
			at := net.JoinHostPort(m.hosts[w].Address, "8066")
			m.eventually("machine "+w+" answers", func(ctx context.Context) error { return outside.reachesAllOverTCP(ctx, at, proxied) })
			answer, err := ask(ctx, outside.client(false), at)
			ok(t, err)
			if answer.Client != m.net.Hosts()[0].Address {
				t.Errorf("through machine %s the task sees the client as %s, want %s", w, answer.Client, m.net.Hosts()[0].Address)
			}
			for _, keep := range []bool{true, false} {
				l.start(ctx, outside, at, keep)
			}
		}
		for _, w := range workers {
			ok(t, m.Process(w).Kill())
			ok(t, m.StartNode(w))
		}
		m.eventually("all nodes are ready", m.Ready)
		plugins, err := m.plugins()
		ok(t, err)
		for _, p := range plugins {
			ok(t, syscall.Kill(p.PID, syscall.SIGKILL))
		}
		ok(t, m.Update(t.Context(), "proxied", func(s *musterv1.ServiceSpec) {
			s.Task.ForceUpdate++
			s.Update = &musterv1.UpdateConfig{Parallelism: 1, Order: musterv1.UpdateConfig_STOP_FIRST, Monitor: durationpb.New(time.Second)}
		}))
		m.eventually("all tasks are replaced", func(ctx context.Context) error {
			now, err := m.Running(ctx, "proxied", 3)
			for id, task := range now {
				if proxied[id] != nil {
					return fmt.Errorf("task %s was not replaced", task.Name)
				}
			}
			return err
		})
		m.awaitRequests(l)
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		t.Logf("%d requests", l.asked.Load())
	})
	t.Run("only tasks of the machine", func(t *testing.T) {
		local := publish(answers("local", 1), &musterv1.PortConfig{
			PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8077, ExternalTraffic: musterv1.PortConfig_LOCAL,
		})
		local.Task.Placement = &musterv1.Placement{Constraints: []string{"node.id==" + m.Nodes["two"]}}
		m.run(local, 1)
		m.eventually("the client's address is kept", func(ctx context.Context) error {
			answer, err := ask(ctx, outside.client(false), net.JoinHostPort(m.hosts["two"].Address, "8077"))
			if err == nil && answer.Client != m.net.Hosts()[0].Address {
				err = fmt.Errorf("the task sees the client as %s, want %s", answer.Client, m.net.Hosts()[0].Address)
			}
			return err
		})
		for _, w := range []string{"one", "three"} {
			ok(t, outside.unreachable(t.Context(), net.JoinHostPort(m.hosts[w].Address, "8077")))
		}
	})
}
