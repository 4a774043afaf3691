package networks_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
)

// load asks again and again, on connections that are kept and on new ones.
type load struct {
	cancel  context.CancelFunc
	clients sync.WaitGroup
	asked   atomic.Int64

	mu     sync.Mutex
	failed []error
}

// pause is how long a client of the load waits after each answer.
const pause = 5 * time.Millisecond

// start has a client ask at an address until the load ends.
func (l *load) start(ctx context.Context, from *inside, at string, keep bool) {
	client := from.client(keep)
	l.clients.Go(func() {
		defer client.CloseIdleConnections()
		for ctx.Err() == nil {
			l.once(ctx, client, fmt.Sprintf("from %s to %s (keep=%t)", from.name, at, keep), at)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

func (l *load) once(ctx context.Context, client *http.Client, what, at string) {
	_, err := ask(ctx, client, at)
	l.asked.Add(1)
	if err != nil && ctx.Err() == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failed = append(l.failed, fmt.Errorf("%s %s: %w", time.Now().Format("15:04:05.000"), what, err))
	}
}

// end ends the load and returns what has failed.
func (l *load) end() error {
	l.cancel()
	l.clients.Wait()
	if n := len(l.failed); n > 10 {
		return fmt.Errorf("%d of %d requests failed, the first: %w", n, l.asked.Load(), errors.Join(l.failed[:10]...))
	}
	return errors.Join(l.failed...)
}

// loadOn puts load on a service, through its virtual address from each client, and
// through the published port of each machine from outside.
func (m *machines) loadOn(service, published string, clients map[string]*musterv1.Task) *load {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	l := &load{cancel: cancel}
	for _, task := range clients {
		from := m.inside(task)
		var virtual string
		m.eventually(service+" has an address", func(ctx context.Context) (err error) {
			if virtual, err = from.address(ctx, service); err != nil {
				return err
			}
			_, err = ask(ctx, from.client(false), net.JoinHostPort(virtual, port))
			return err
		})
		for _, keep := range []bool{true, false} {
			l.start(ctx, from, net.JoinHostPort(virtual, port), keep)
		}
	}
	outside := &inside{name: "outside", Namespace: &m.net.Hosts()[0].Namespace}
	for _, w := range workers {
		at := net.JoinHostPort(m.hosts[w].Address, published)
		m.eventually("machine "+w+" answers", func(ctx context.Context) error {
			_, err := ask(ctx, outside.client(false), at)
			return err
		})
		for _, keep := range []bool{true, false} {
			l.start(ctx, outside, at, keep)
		}
	}
	return l
}

// TestNoRequestFailsWhileTasksAreReplaced updates and scales a service under load.
func TestNoRequestFailsWhileTasksAreReplaced(t *testing.T) {
	m := start(t)
	m.network(&musterv1.NetworkSpec{Name: "front"})
	web := m.run(publish(answers("web", 3, "front"), &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8088}), 3)
	clients := m.run(global(answers("client", 0, "front")), len(workers))
	for _, order := range []musterv1.UpdateConfig_Order{musterv1.UpdateConfig_START_FIRST, musterv1.UpdateConfig_STOP_FIRST} {
		t.Run(order.String(), func(t *testing.T) {
			l := m.loadOn("web", "8088", clients)
			ok(t, m.Update(t.Context(), "web", func(s *musterv1.ServiceSpec) {
				s.Task.ForceUpdate++
				s.Update = &musterv1.UpdateConfig{Parallelism: 1, Order: order, Monitor: durationpb.New(time.Second)}
			}))
			m.eventually("the update is complete", func(ctx context.Context) error {
				s, err := m.Service(ctx, "web")
				if err == nil && s.GetUpdateStatus().GetState() != musterv1.UpdateStatus_COMPLETED {
					err = fmt.Errorf("the update is %s", s.GetUpdateStatus().GetState())
				}
				return err
			})
			after := m.running("web", 3)
			for id := range after {
				if web[id] != nil {
					t.Errorf("task %s was not replaced", id)
				}
			}
			web = after
			if err := l.end(); err != nil {
				t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
			}
			t.Logf("%d requests", l.asked.Load())
		})
	}
	t.Run("more and fewer tasks", func(t *testing.T) {
		l := m.loadOn("web", "8088", clients)
		for _, n := range []uint64{6, 2, 3} {
			ok(t, m.Scale(t.Context(), "web", n))
			m.running("web", int(n))
		}
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		t.Logf("%d requests", l.asked.Load())
	})
	t.Run("parts are killed", func(t *testing.T) {
		l := m.loadOn("web", "8088", clients)
		for _, part := range []string{"dispatcherd", "allocatord"} {
			ok(t, m.Process(part).Kill())
			ok(t, m.StartManager(part))
		}
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		l = m.loadOn("web", "8088", clients)
		for _, w := range workers {
			ok(t, m.Process(w).Kill())
			ok(t, m.StartNode(w))
		}
		m.eventually("all nodes are ready", m.Ready)
		m.eventually("network plugins run", func(context.Context) error {
			if found, err := m.plugins(); err != nil || len(found) != len(workers) {
				return fmt.Errorf("%d network plugins run, want %d (%w)", len(found), len(workers), err)
			}
			return nil
		})
		plugins, err := m.plugins()
		ok(t, err)
		for _, p := range plugins {
			ok(t, syscall.Kill(p.PID, syscall.SIGKILL))
		}
		// What is made afterwards works too.
		ok(t, m.Scale(t.Context(), "web", 4))
		web := m.running("web", 4)
		for _, task := range clients {
			from := m.inside(task)
			m.eventually("the new task is reached", func(ctx context.Context) error {
				virtual, err := from.address(ctx, "web")
				if err != nil {
					return err
				}
				return from.reachesAll(ctx, net.JoinHostPort(virtual, port), web)
			})
		}
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		t.Logf("%d requests", l.asked.Load())
	})
	t.Run("a machine is cut off", func(t *testing.T) {
		cut, rest := []*network.Host{m.hosts["three"]}, []*network.Host{m.net.Hosts()[0], m.hosts["one"], m.hosts["two"]}
		ok(t, m.net.Cut(t.Context(), cut, rest))
		healed := false
		defer func() {
			if !healed {
				ok(t, m.net.Heal(context.WithoutCancel(t.Context())))
			}
		}()
		front := m.id("front")
		for _, task := range clients {
			if task.NodeId == m.Nodes["three"] {
				continue
			}
			from := m.inside(task)
			m.eventually("tasks on other machines take the place of those that are cut off", func(ctx context.Context) error {
				web, err := m.Running(ctx, "web", 4)
				if err != nil {
					return err
				}
				for _, w := range web {
					if w.NodeId == m.Nodes["three"] {
						return fmt.Errorf("task %s is still on the machine that is cut off", w.Name)
					}
				}
				got, err := from.lookup(ctx, "tasks.web")
				if want := addresses(web, front); err != nil || !slices.Equal(got, want) {
					return fmt.Errorf("tasks.web has addresses %v (%w), want %v", got, err, want)
				}
				return nil
			})
		}
		ok(t, m.net.Heal(t.Context()))
		healed = true
		m.eventually("all nodes are ready", m.Ready)
		web, clients := m.running("web", 4), m.running("client", len(workers))
		for _, task := range clients {
			from := m.inside(task)
			m.eventually("all is as before", func(ctx context.Context) error {
				virtual, err := from.address(ctx, "web")
				if err != nil {
					return err
				}
				return from.reachesAll(ctx, net.JoinHostPort(virtual, port), web)
			})
		}
	})
}

// id returns the id of a network.
func (m *machines) id(name string) (id string) {
	m.t.Helper()
	ok(m.t, m.Do(m.t.Context(), func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.GetNetwork(ctx, &musterv1.GetNetworkRequest{Network: name})
		id = resp.GetNetwork().GetId()
		return err
	}))
	return id
}

// nameServerProcess is what the processes that answer for names are called.
const nameServerProcess = "muster-names"

// plugins returns the processes of the workers' network plugins.
func (m *machines) plugins() (found []rig.Process, err error) {
	all, err := m.Machine()
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.Program), "muster-network-") && p.Command[0] != nameServerProcess {
			found = append(found, p)
		}
	}
	return found, err
}

// nameServers returns the processes that answer for names.
func (m *machines) nameServers() (found []rig.Process, err error) {
	all, err := m.Machine()
	for _, p := range all {
		if p.Command[0] == nameServerProcess {
			found = append(found, p)
		}
	}
	return found, err
}
