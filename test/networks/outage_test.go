package networks_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// enough is how many requests a load sends while something is away.
const enough = 500

// awaitRequests waits until a load has sent many more requests.
func (m *machines) awaitRequests(l *load) {
	m.t.Helper()
	until := l.asked.Load() + enough
	m.eventually("requests are sent meanwhile", func(context.Context) error {
		if n := l.asked.Load(); n < until {
			return fmt.Errorf("%d requests, want %d", n, until)
		}
		return nil
	})
}

// knows waits until a task finds exactly some tasks by a service's name, and reaches them.
func (m *machines) knows(from *inside, service, network string, tasks map[string]*musterv1.Task) {
	m.t.Helper()
	m.eventually(from.name+" reaches all tasks of "+service, func(ctx context.Context) error {
		got, err := from.lookup(ctx, "tasks."+service)
		if want := addresses(tasks, network); err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("tasks.%s has addresses %v (%w), want %v", service, got, err, want)
		}
		virtual, err := from.address(ctx, service)
		if err != nil {
			return err
		}
		return from.reachesAll(ctx, net.JoinHostPort(virtual, port), tasks)
	})
}

// TestNetworksOutliveOutages takes away Consul, and then all that a machine has but its disk.
func TestNetworksOutliveOutages(t *testing.T) {
	m := start(t)
	front := m.network(&musterv1.NetworkSpec{Name: "front"})
	spec := global(answers("web", 0, "front"))
	spec = publish(spec, &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8088})
	web := m.run(spec, len(workers))
	clients := m.run(global(answers("client", 0, "front")), len(workers))

	t.Run("Consul is away", func(t *testing.T) {
		l := m.loadOn("web", "8088", clients)
		ok(t, m.Servers.Kill())
		back := false
		defer func() {
			if !back {
				ok(t, m.Servers.Restart())
			}
		}()
		m.awaitRequests(l)
		for _, client := range clients {
			m.knows(m.inside(client), "web", front, web)
		}
		// Plugins and the processes that answer for names start again meanwhile.
		plugins, err := m.plugins()
		ok(t, err)
		for _, p := range plugins {
			ok(t, syscall.Kill(p.PID, syscall.SIGKILL))
		}
		m.awaitRequests(l)
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		t.Logf("%d requests", l.asked.Load())
		servers, err := m.nameServers()
		ok(t, err)
		for _, p := range servers {
			ok(t, syscall.Kill(p.PID, syscall.SIGKILL))
		}
		for _, client := range clients {
			m.knows(m.inside(client), "web", front, web)
		}
		// A task that ends meanwhile is replaced afterwards.
		var ended *musterv1.Task
		for _, task := range web {
			ended = task
		}
		ok(t, syscall.Kill(int(ended.Status.GetRuntime().GetPid()), syscall.SIGKILL))
		ok(t, m.Servers.Restart())
		back = true
		m.eventually("the task is replaced", func(ctx context.Context) (err error) {
			if web, err = m.Running(ctx, "web", len(workers)); err == nil && web[ended.Id] != nil {
				err = errors.New("the task that has ended is still there")
			}
			return err
		})
		for _, client := range clients {
			m.knows(m.inside(client), "web", front, web)
		}
	})

	t.Run("a machine is rebooted", func(t *testing.T) {
		ok(t, m.powerOff("two"))
		ok(t, m.StartNode("two"))
		m.eventually("all nodes are ready", m.Ready)
		replaced := func(service string, before map[string]*musterv1.Task) (after map[string]*musterv1.Task) {
			m.eventually(service+" has a new task on the machine", func(ctx context.Context) (err error) {
				after, err = m.Running(ctx, service, len(workers))
				for id, task := range after {
					if task.NodeId == m.Nodes["two"] && before[id] != nil {
						return fmt.Errorf("task %s of before the reboot is said to run", task.Name)
					}
				}
				return err
			})
			return after
		}
		web, clients := replaced("web", web), replaced("client", clients)
		for _, client := range clients {
			m.knows(m.inside(client), "web", front, web)
		}
		outside := &inside{name: "outside", Namespace: &m.net.Hosts()[0].Namespace}
		for _, w := range workers {
			m.eventually("machine "+w+" answers", func(ctx context.Context) error {
				return outside.reachesAllOverTCP(ctx, net.JoinHostPort(m.hosts[w].Address, "8088"), web)
			})
		}
	})
}

// forget removes what the kernel of a machine has of networks. The machines of a test share
// their mounts, so only namespaces of the machine's own node are removed.
const forget = `set -e
for node in $(nft list tables | awk '{print $3}' | grep ^muster- | sort -u); do
	for space in /run/netns/$node-*; do umount -l $space; rm -f $space; done
done
nft flush ruleset
for link in $(ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | grep ^mu); do ip link delete $link 2>/dev/null || true; done`

// powerOff ends all processes of a machine and removes what its kernel has, as a reboot does.
func (m *machines) powerOff(worker string) error {
	here, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.Process(worker).PID()))
	if err != nil {
		return err
	}
	for again := true; again; {
		again = false
		all, err := m.Machine()
		if err != nil {
			return err
		}
		for _, p := range all {
			space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID))
			if err != nil || space != here && p.Node != m.Nodes[worker] {
				continue
			}
			again = true
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	command := append(m.hosts[worker].Command(), "sh", "-c", forget)
	if said, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("remove what the kernel has: %w: %s", err, said)
	}
	return m.Process(worker).Kill()
}
