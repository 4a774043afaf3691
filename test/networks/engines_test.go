package networks_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/engine"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/process"
)

// image is what the containers of these tests run: nothing but the program answer.
const image = "muster-test-answer:local"

// startEngine starts an Engine on a host, with all of its files in a directory, and gives
// it the image.
func startEngine(t *testing.T, h *network.Host, dir string) {
	t.Helper()
	need.Met(t, engine.Missing())
	e, err := engine.NewOn(h, dir)
	ok(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Engine in %s: %s", dir, e.Log())
		}
		if err := e.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ok(t, e.Start(t.Context()))
	program, err := os.ReadFile(answer)
	ok(t, err)
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	ok(t, w.WriteHeader(&tar.Header{Name: "answer", Mode: 0o755, Size: int64(len(program))}))
	_, err = w.Write(program)
	ok(t, errors.Join(err, w.Close()))
	_, err = process.Docker(t.Context(), &files, "--host", e.Host(), "import", "-", image)
	ok(t, err)
}

// containers makes a service one of containers.
func containers(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec.Task.Runtime = &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
		Image: image, Command: []string{"/answer", "-port", port},
		PullOptions:     &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER},
		StopGracePeriod: durationpb.New(5 * time.Second),
	}}
	return spec
}

// TestContainersOfTwoEnginesReachEachOther has containers of two Docker Engines, each on a
// machine of its own with the Engine's own firewall, reach each other by name and through
// published ports. The third machine has no Engine.
func TestContainersOfTwoEnginesReachEachOther(t *testing.T) {
	// Paths of sockets are short.
	dir, err := os.MkdirTemp("", "engines-")
	ok(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	env, at := map[string][]string{"three": {"DOCKER_HOST=unix://" + filepath.Join(dir, "none")}}, map[string]string{}
	for _, name := range workers[:2] {
		at[name] = filepath.Join(dir, name)
		ok(t, os.Mkdir(at[name], 0o700))
		env[name] = []string{"DOCKER_HOST=unix://" + filepath.Join(at[name], "socket")}
	}
	m := startWith(t, env, func(hosts map[string]*network.Host) {
		for name, dir := range at {
			startEngine(t, hosts[name], dir)
		}
	})
	back := m.network(&musterv1.NetworkSpec{Name: "back"})
	web := m.run(publish(containers(answers("web", 4, "back")), &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8088}), 4)
	clients := m.run(containers(spread(answers("client", 2, "back"))), 2)
	nodes := map[string]int{}
	for _, task := range web {
		nodes[task.NodeId]++
	}
	if nodes[m.Nodes["one"]] != 2 || nodes[m.Nodes["two"]] != 2 {
		t.Fatalf("tasks by node: %v, want two on each with an Engine", nodes)
	}
	byAddress := func(network string) map[string]*musterv1.Task {
		found := map[string]*musterv1.Task{}
		for _, task := range web {
			found[addresses(map[string]*musterv1.Task{"": task}, network)[0]] = task
		}
		return found
	}
	for _, task := range clients {
		from := m.inside(task)
		m.eventually("all tasks are reached by name from "+from.name, func(ctx context.Context) error {
			virtual, err := from.address(ctx, "web")
			if err != nil {
				return err
			}
			return from.reachesAllOverTCP(ctx, net.JoinHostPort(virtual, port), byAddress(back))
		})
		for _, a := range addresses(web, back) {
			_, err := ask(t.Context(), from.client(false), net.JoinHostPort(a, port))
			ok(t, err)
		}
	}
	outside := &inside{name: "outside", Namespace: &m.net.Hosts()[0].Namespace}
	for _, w := range workers {
		m.eventually("machine "+w+" answers", func(ctx context.Context) error {
			return outside.reachesAllOverTCP(ctx, net.JoinHostPort(m.hosts[w].Address, "8088"), byAddress(m.id("ingress")))
		})
		ok(t, outside.unreachable(t.Context(), net.JoinHostPort(m.hosts[w].Address, port)))
	}
}
