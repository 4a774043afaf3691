// Package networks_test runs clusters on three machines, each in a network namespace of
// its own, over a real Consul, and looks at networks as tasks and clients see them: from
// within the tasks' own namespaces, and from the machines.
package networks_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// built is the directory with the programs, and answer the program of the tasks.
// TestMain sets them before any test runs.
var built, answer string

func TestMain(m *testing.M) {
	os.Exit(rig.TestsWith(tests{m}, "networks", &built, "executor-docker", "executor-process", "network-overlay"))
}

// tests builds the program of the tasks first.
type tests struct{ *testing.M }

func (m tests) Run() int {
	answer = filepath.Join(built, "answer")
	cmd := exec.Command("go", "build", "-o", answer, "./answer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build answer: %v\n%s", err, out)
		return 1
	}
	return m.M.Run()
}

// waitTimeout bounds what should take moments, on a machine that is busy.
const waitTimeout = 2 * time.Minute

// port is the one that tasks answer at.
const port = "8080"

// machines is a cluster whose workers are on machines of their own.
type machines struct {
	*rig.Rig
	t   *testing.T
	net *network.Net
	// hosts are those of the workers, by the workers' names.
	hosts map[string]*network.Host
}

// workers are the names of the workers.
var workers = [...]string{"one", "two", "three"}

// start starts a cluster that ends with the test. The managers and Consul are on a
// machine of their own.
func start(t *testing.T) *machines {
	t.Helper()
	return startWith(t, nil)
}

// startWith is the same with variables in the environment of workers, by their names. Each
// of prepare is called with the workers' machines before the cluster starts.
func startWith(t *testing.T, env map[string][]string, prepare ...func(map[string]*network.Host)) *machines {
	t.Helper()
	need.Met(t, network.Missing())
	need.Program(t, "consul")
	n, err := network.New(t.Context(), 1+len(workers))
	ok(t, err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &machines{t: t, net: n, hosts: map[string]*network.Host{}}
	nodes, tag := map[string]string{}, strings.ToLower(rand.Text()[:8])
	for i, name := range workers {
		m.hosts[name] = n.Hosts()[1+i]
		nodes[name] = "node-" + name + "-" + tag
	}
	for _, p := range prepare {
		p(m.hosts)
	}
	m.Rig = rig.StartFor(t, rig.Config{
		Config: cluster.Config{
			Net: n, WorkerHosts: m.hosts, Env: env,
			// A worker that the machine gives no time for a while is not dead.
			Args: map[string][]string{"dispatcherd": {"--heartbeat-misses", "5", "--reconnect-grace", "10s"}},
		},
		Built: built, NodeIDs: nodes,
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), waitTimeout)
		defer cancel()
		err := errors.Join(m.RemoveAll(ctx), wait.Until(ctx, m.Empty), m.removeNetworks(ctx), wait.Until(ctx, m.nothingLeft))
		if err != nil {
			t.Error(err)
		}
	})
	wait.Within(t, waitTimeout, "all nodes are ready", m.Ready)
	return m
}

// nothingLeft returns an error if a worker's machine still has anything of a network.
func (m *machines) nothingLeft(context.Context) error {
	for name, h := range m.hosts {
		found, err := h.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range found {
			if i.Flags&net.FlagLoopback == 0 && i.Name != "eth0" && i.Name != "docker0" {
				return fmt.Errorf("machine %s still has interface %s", name, i.Name)
			}
		}
	}
	servers, err := m.nameServers()
	if err == nil && len(servers) > 0 {
		err = fmt.Errorf("there is still %s", servers[0])
	}
	return err
}

// network creates a network and returns its id.
func (m *machines) network(spec *musterv1.NetworkSpec) (id string) {
	m.t.Helper()
	ok(m.t, m.Do(m.t.Context(), func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: spec})
		id = resp.GetNetwork().GetId()
		return err
	}))
	return id
}

// removeNetworks removes all networks, the ingress network too.
func (m *machines) removeNetworks(ctx context.Context) error {
	return m.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		all, err := c.ListNetworks(ctx, &musterv1.ListNetworksRequest{})
		for _, n := range all.GetNetworks() {
			_, rerr := c.RemoveNetwork(ctx, &musterv1.RemoveNetworkRequest{Network: n.Id})
			err = errors.Join(err, rerr)
		}
		return err
	})
}

// answers is the spec of a service whose tasks answer, on some networks.
func answers(name string, replicas uint64, networks ...string) *musterv1.ServiceSpec {
	spec := rig.Processes(name, replicas, "")
	payload, err := structpb.NewStruct(map[string]any{
		"command": []any{answer}, "args": []any{"-port", port},
		// A task gets no requests before it listens.
		"healthcheck": map[string]any{"tcp": 8080, "interval": "1s", "startPeriod": "1m", "startInterval": "50ms"},
	})
	if err != nil {
		panic(err)
	}
	spec.Task.GetGeneric().Payload = payload
	for _, n := range networks {
		spec.Task.Networks = append(spec.Task.Networks, &musterv1.NetworkAttachmentConfig{Target: n})
	}
	return spec
}

// global has a service run on every node.
func global(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
	return spec
}

// run creates a service, waits until so many tasks run, and returns them.
func (m *machines) run(spec *musterv1.ServiceSpec, tasks int) map[string]*musterv1.Task {
	m.t.Helper()
	_, err := m.Create(m.t.Context(), spec)
	ok(m.t, err)
	return m.running(spec.Name, tasks)
}

// running waits until so many tasks of a service run, and returns them by id.
func (m *machines) running(service string, tasks int) (found map[string]*musterv1.Task) {
	m.t.Helper()
	wait.Within(m.t, waitTimeout, fmt.Sprintf("%d tasks of %s run", tasks, service), func(ctx context.Context) (err error) {
		found, err = m.Running(ctx, service, tasks)
		return err
	})
	return found
}

// ok fails the test at an error.
func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
