package docker_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-connections/nat"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// freePort returns a port without a listener, and that no connection and no
// container is given by itself: they begin at 32768.
func freePort(t *testing.T) uint32 {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(12_000)
		free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		if err := free.Close(); err != nil {
			t.Fatal(err)
		}
		return uint32(port)
	}
	t.Fatal("no port is free")
	return 0
}

func TestHostPorts(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	chosen := freePort(t)
	host := musterv1.PortConfig_HOST
	b.task.Ports = []*sdk.Port{
		{Name: "fixed", TargetPort: 80, PublishedPort: chosen, PublishMode: host, Protocol: musterv1.PortConfig_TCP},
		{Name: "any", TargetPort: 80, PublishMode: host},
		{Name: "datagrams", TargetPort: 53, PublishMode: host, Protocol: musterv1.PortConfig_UDP},
		{Name: "mesh", TargetPort: 90, PublishedPort: 90, PublishMode: musterv1.PortConfig_INGRESS},
	}
	got := b.run().Ports
	if len(got) != 3 || got[0].GetPublishedPort() != chosen || got[0].GetName() != "fixed" {
		t.Fatalf("ports = %v", got)
	}
	for _, port := range got[1:] {
		if port.GetPublishedPort() == 0 || port.GetPublishedPort() == chosen {
			t.Errorf("port %s = %v", port.GetName(), port)
		}
	}
	// With IPv6 the Engine may have chosen two numbers.
	for i, inside := range map[int]nat.Port{1: "80/tcp", 2: "53/udp"} {
		found := slices.ContainsFunc(b.inspect().NetworkSettings.Ports[inside], func(x nat.PortBinding) bool {
			return !strings.Contains(x.HostIP, ":") && x.HostPort == fmt.Sprint(got[i].GetPublishedPort())
		})
		if !found {
			t.Errorf("port %v is not one of IPv4: %v", got[i], b.inspect().NetworkSettings.Ports[inside])
		}
	}
	// The port is taken now, which is the node's fault and not the spec's.
	other := newBench(t, taskSpec(shell("true")))
	other.task.Ports = b.task.Ports[:1]
	if _, err := other.Prepare(other.context(), other.task, nil); err != nil {
		t.Fatal(err)
	}
	_, err := other.Start(other.context(), other.task, nil)
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode {
		t.Errorf("Start = %+v (%v)", got, got)
	}
	name := strings.TrimPrefix(b.inspect().Name, "/")
	want := fmt.Sprintf("host port %d/tcp is taken by container %s: publish another port, or remove that container", chosen, name)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Start says %q, want %q", err, want)
	}
}

// TestHostPortOfAnotherProcess: the error says that it is no container that has the port.
func TestHostPortOfAnotherProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprintf(":%d", freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	port := uint32(listener.Addr().(*net.TCPAddr).Port)
	b.task.Ports = []*sdk.Port{{TargetPort: 80, PublishedPort: port, PublishMode: musterv1.PortConfig_HOST}}
	if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	_, err = b.Start(b.context(), b.task, nil)
	want := fmt.Sprintf("host port %d/tcp is taken by another process of the machine: publish another port, or stop that process", port)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Start says %q, want %q", err, want)
	}
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode {
		t.Errorf("Start = %+v, want a lasting fault of the node", got)
	}
}
