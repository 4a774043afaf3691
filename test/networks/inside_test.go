package networks_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/wait"
)

// nameServer is where a task asks for names.
const nameServer = "169.254.1.1:53"

// inside is what a task sees, or a machine.
type inside struct {
	name string
	*network.Namespace
	// resolver is nil for a machine.
	resolver *net.Resolver
}

// inside returns the view from a task that runs.
func (m *machines) inside(task *musterv1.Task) *inside {
	m.t.Helper()
	n, err := network.Open(fmt.Sprintf("/proc/%d/ns/net", task.Status.GetRuntime().GetPid()))
	ok(m.t, err)
	m.t.Cleanup(func() { _ = n.Close() })
	return &inside{name: task.Name, Namespace: n, resolver: &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return n.DialContext(ctx, network, nameServer)
		},
	}}
}

// machine returns the view from a worker's machine.
func (m *machines) machine(worker string) *inside {
	return &inside{name: "machine " + worker, Namespace: &m.hosts[worker].Namespace}
}

// lookup returns a name's addresses, sorted.
func (i *inside) lookup(ctx context.Context, name string) ([]string, error) {
	found, err := i.resolver.LookupNetIP(ctx, "ip4", name+".")
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", i.name, err)
	}
	var addresses []string
	for _, a := range found {
		addresses = append(addresses, a.Unmap().String())
	}
	slices.Sort(addresses)
	return addresses, nil
}

// address returns the one address of a name.
func (i *inside) address(ctx context.Context, name string) (string, error) {
	found, err := i.lookup(ctx, name)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("from %s: %s has addresses %v, want one", i.name, name, found)
	}
	return strings.Join(found, ""), err
}

// said is what a task answers.
type said struct{ Task, Client string }

// requestTimeout bounds one request.
const requestTimeout = 10 * time.Second

// client returns a client that makes a connection for each request, or keeps them.
func (i *inside) client(keep bool) *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{DialContext: i.DialContext, DisableKeepAlives: !keep}}
}

// ask asks the task at an address and port over HTTP.
func ask(ctx context.Context, client *http.Client, at string) (answer said, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/", nil)
	if err != nil {
		return said{}, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return said{}, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return said{}, err
	}
	return answer, json.Unmarshal(body, &answer)
}

// packet asks over UDP, from a port of its own.
func (i *inside) packet(ctx context.Context, at string) (task string, err error) {
	conn, err := i.DialContext(ctx, "udp", at)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("who")); err != nil {
		return "", err
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}

// reachesAll asks until each of some tasks has answered, over TCP and over UDP, and no
// other has.
func (i *inside) reachesAll(ctx context.Context, at string, tasks map[string]*musterv1.Task) error {
	if err := i.reachesAllOverTCP(ctx, at, tasks); err != nil {
		return err
	}
	return i.reachesAllBy(func() (string, error) { return i.packet(ctx, at) }, at, tasks)
}

// reachesAllOverTCP is the same over TCP alone.
func (i *inside) reachesAllOverTCP(ctx context.Context, at string, tasks map[string]*musterv1.Task) error {
	client := i.client(false)
	return i.reachesAllBy(func() (string, error) {
		answer, err := ask(ctx, client, at)
		return answer.Task, err
	}, at, tasks)
}

func (i *inside) reachesAllBy(how func() (string, error), at string, tasks map[string]*musterv1.Task) error {
	left := maps.Clone(tasks)
	for n := 0; len(left) > 0; n++ {
		task, err := how()
		if err != nil {
			return fmt.Errorf("from %s to %s: %w", i.name, at, err)
		}
		if tasks[task] == nil {
			return fmt.Errorf("from %s to %s: task %q answered", i.name, at, task)
		}
		if delete(left, task); n > 100*len(tasks) {
			return fmt.Errorf("from %s to %s: tasks %v never answered", i.name, at, slices.Collect(maps.Keys(left)))
		}
	}
	return nil
}

// eventually waits until something holds.
func (m *machines) eventually(what string, look func(context.Context) error) {
	m.t.Helper()
	wait.Within(m.t, waitTimeout, what, look)
}

// addresses returns the addresses of tasks on a network, sorted.
func addresses(tasks map[string]*musterv1.Task, network string) []string {
	var all []string
	for _, t := range tasks {
		for _, n := range t.Networks {
			if n.NetworkId == network {
				all = append(all, n.Addresses...)
			}
		}
	}
	slices.Sort(all)
	return all
}

// unreachable returns an error if something answers at an address.
func (i *inside) unreachable(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if answer, err := ask(ctx, i.client(false), at); err == nil {
		return fmt.Errorf("from %s: task %s answers at %s", i.name, answer.Task, at)
	}
	return nil
}
