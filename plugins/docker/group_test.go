package docker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// beside returns another container of the group of the bench's task.
func (b *bench) beside(name, script string) *bench {
	b.Helper()
	id := b.task.GetId() + "-" + name
	other := &bench{T: b.T, Executor: b.Executor, engine: b.engine, dir: b.dir, ref: sdk.Ref{TaskID: id}, task: &sdk.Task{
		Id: id, Name: b.task.GetName() + "." + name, NodeId: b.task.GetNodeId(), SharesNetworkOf: b.task.GetId(),
		Spec: taskSpec(shell(script)), Networked: b.task.GetNetworked(),
	}}
	other.task.Spec.Networks = b.task.GetSpec().GetNetworks()
	b.Cleanup(func() {
		if err := other.Remove(context.Background(), other.ref); err != nil {
			b.Errorf("Remove: %v", err)
		}
	})
	return other
}

// newGroup returns a bench whose task has a group, and answers on port 8080.
func newGroup(t *testing.T) *bench {
	t.Helper()
	spec := shell(`exec nc -ll -p 8080 -e echo hello`)
	b := newBench(t, taskSpec(spec))
	b.task.Spec.Group = []*musterv1.GroupContainer{{Name: "client", Role: musterv1.GroupContainer_SIDECAR}}
	return b
}

const askServer = `until nc 127.0.0.1 8080 2>/dev/null </dev/null; do sleep 0.1; done; cat /etc/hostname; exec sleep 600`

// firstLines returns the first lines of output.
func (b *bench) firstLines(n int) []string {
	b.Helper()
	var lines []string
	err := b.Logs(b.context(), b.ref, sdk.LogOptions{Follow: true}, func(line sdk.LogLine) error {
		if lines = append(lines, string(line.Data)); len(lines) == n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		b.Fatalf("Logs: %v", err)
	}
	return lines
}

// TestContainersOfGroupTalkOverLocalhost starts a sidecar before the main container that it
// talks to.
func TestContainersOfGroupTalkOverLocalhost(t *testing.T) {
	t.Parallel()
	main := newGroup(t)
	main.task.Spec.GetContainer().Hostname = "grouped"
	main.task.Ports = []*sdk.Port{{TargetPort: 8080, PublishMode: musterv1.PortConfig_HOST}}
	var err error
	if main.ref.Handle, err = main.Prepare(main.context(), main.task, nil); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	client := main.beside("client", askServer)
	client.run()
	started, err := main.Start(main.context(), main.task, main.ref.Handle)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	if len(started.Ports) != 1 || started.Ports[0].GetPublishedPort() == 0 {
		t.Errorf("ports = %v, want one that the Engine chose", started.Ports)
	}
	if got := strings.Join(client.firstLines(2), " "); got != "hello grouped" {
		t.Errorf("the sidecar reads %q, want %q", got, "hello grouped")
	}

	// The sidecar is made again while the main container runs.
	if err := client.Remove(client.context(), client.ref); err != nil {
		t.Fatal(err)
	}
	client.ref.Handle = nil
	client.run()
	if got := client.firstLines(1)[0]; got != "hello" {
		t.Errorf("the sidecar that was started again reads %q", got)
	}

	// The namespace outlives the main container.
	if _, err := main.Terminate(main.context(), main.ref); err != nil {
		t.Fatal(err)
	}
	after := main.beside("after", "cat /etc/hostname")
	after.run()
	if ended := after.wait(); ended.Status.GetExitCode() != 0 || after.output()[0] != "grouped" {
		t.Errorf("the post-stop container ended with %v and says %q", ended, after.output())
	}
	listed, err := newExecutor(t, main.dir).List(main.context(), main.task.GetNodeId())
	if err != nil || len(listed) != 3 {
		t.Errorf("List = %v, %v; want 3 tasks", listed, err)
	}
	for _, b := range []*bench{after, client, main} {
		if err := b.Remove(b.context(), b.ref); err != nil {
			t.Fatal(err)
		}
	}
	if left := main.pauses(""); len(left) > 0 {
		t.Errorf("there is left: %q", left)
	}
}

func TestNetworkedGroupSharesTheNamespaceOfPrepare(t *testing.T) {
	t.Parallel()
	main := networked(t, shell("exec sleep 600"))
	main.task.Spec.Group = []*musterv1.GroupContainer{{Name: "client", Role: musterv1.GroupContainer_SIDECAR}}
	path := main.prepare()
	client := main.beside("client", "cat /etc/resolv.conf; exec sleep 600")
	if got := client.prepare(); got != path {
		t.Errorf("the namespace of the sidecar is %s, want %s", got, path)
	}
	network := &sdk.Network{Namespace: path, Nameservers: []string{"169.254.1.1"}}
	first := main.launch(network)
	second := client.launch(network)
	if a, b := inode(t, fmt.Sprintf("/proc/%d/ns/net", first.Status.GetPid())), inode(t, fmt.Sprintf("/proc/%d/ns/net", second.Status.GetPid())); a != b {
		t.Errorf("the containers are in namespaces %d and %d", a, b)
	}
	if got := client.firstLines(1)[0]; got != "nameserver 169.254.1.1" {
		t.Errorf("the sidecar has the resolv.conf %q", got)
	}
}

func TestGroupOnTheNetworkOfTheNodeHasNoPauseContainer(t *testing.T) {
	t.Parallel()
	main := newGroup(t)
	main.task.Spec.GetContainer().Command = []string{"sleep", "600"}
	main.task.Spec.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "host"}}
	main.run()
	client := main.beside("client", "exec sleep 600")
	started := client.run()
	if a, b := inode(t, fmt.Sprintf("/proc/%d/ns/net", started.Status.GetPid())), inode(t, "/proc/self/ns/net"); a != b {
		t.Errorf("the sidecar is in namespace %d, want that of the node, %d", a, b)
	}
	if left := main.pauses(""); len(left) > 0 {
		t.Errorf("there are pause containers: %q", left)
	}
}

func TestGroupNamesWhoHasAPortThatIsTaken(t *testing.T) {
	t.Parallel()
	holder := newBench(t, taskSpec(shell("exec sleep 600")))
	holder.task.Ports = []*sdk.Port{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
	taken := holder.run().Ports[0].GetPublishedPort()
	main := newGroup(t)
	main.task.Ports = []*sdk.Port{{TargetPort: 80, PublishedPort: taken, PublishMode: musterv1.PortConfig_HOST}}
	_, err := main.Prepare(main.context(), main.task, nil)
	want := fmt.Sprintf("host port %d/tcp is taken by container %s: publish another port, or remove that container", taken, holder.task.GetName())
	if err == nil || err.Error() != want {
		t.Errorf("Prepare = %v, want %s", err, want)
	}
}
