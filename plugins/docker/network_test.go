//go:build linux

package docker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"golang.org/x/sys/unix"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/sdk"
)

// networked returns a bench whose task is attached to networks.
func networked(t *testing.T, spec *musterv1.ContainerSpec) *bench {
	t.Helper()
	b := newBench(t, taskSpec(spec))
	b.task.Networked = true
	t.Cleanup(func() {
		if err := b.Remove(context.Background(), b.ref); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if left := b.pauses("muster-pause-"); len(left) > 0 {
			t.Errorf("there is left: %q", left)
		}
	})
	return b
}

// pauses returns the names of the pause containers of the bench's node that begin so.
func (b *bench) pauses(prefix string) []string {
	b.Helper()
	listed, err := b.engine.ContainerList(context.Background(), container.ListOptions{All: true, Filters: filters.NewArgs(
		filters.Arg("label", "com.musterhq.pause"), filters.Arg("label", "com.musterhq.node.id="+b.task.GetNodeId()),
	)})
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for _, c := range listed {
		if name := strings.TrimPrefix(c.Names[0], "/"); strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// prepare prepares the task and returns the path of its namespace.
func (b *bench) prepare() string {
	b.Helper()
	var err error
	if b.ref.Handle, err = b.Prepare(b.context(), b.task, b.ref.Handle); err != nil {
		b.Fatalf("Prepare: %v", err)
	}
	path, err := b.Namespace(b.context(), b.ref)
	if err != nil {
		b.Fatalf("Namespace: %v", err)
	}
	return path
}

// launch starts the prepared task on a network.
func (b *bench) launch(network *sdk.Network) *sdk.Started {
	b.Helper()
	if err := b.SetNetwork(b.context(), b.task, b.ref.Handle, network); err != nil {
		b.Fatalf("SetNetwork: %v", err)
	}
	started, err := b.Start(b.context(), b.task, b.ref.Handle)
	if err != nil {
		b.Fatalf("Start: %v", err)
	}
	b.ref.Handle = started.Handle
	return started
}

// inode returns that of a namespace, or of another file.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return stat.Ino
}

func TestNetworkedTaskRunsInTheNamespaceOfPrepare(t *testing.T) {
	t.Parallel()
	b := networked(t, &musterv1.ContainerSpec{
		Command:   []string{"/bin/sh", "-c", "cat /etc/resolv.conf; echo --; cat /etc/hosts; echo --; ls /sys/class/net; while :; do sleep 1; done"},
		Hosts:     []string{"192.0.2.7 old older"},
		DnsConfig: &musterv1.DNSConfig{Nameservers: []string{"192.0.2.53"}, Search: []string{"example.org"}, Options: []string{"timeout:1"}},
		// The container joins a namespace, and Docker then takes none of the above itself.
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "81"},
	})
	b.task.Ports = []*sdk.Port{{TargetPort: 80, PublishedPort: 1, PublishMode: musterv1.PortConfig_HOST}}
	path := b.prepare()
	before := inode(t, path)
	started := b.launch(&sdk.Network{
		Namespace: path, Nameservers: []string{"169.254.1.1"}, Search: []string{"unused"}, Options: []string{"ndots:0"}, Hosts: []string{"10.64.0.9 web"},
	})
	if len(started.Ports) > 0 {
		t.Errorf("Start says that the Engine has published %v", started.Ports)
	}
	if got := inode(t, fmt.Sprintf("/proc/%d/ns/net", started.Status.GetPid())); got != before || inode(t, path) != before {
		t.Errorf("the task is in namespace %d, and %s is %d; want %d", got, path, inode(t, path), before)
	}
	want := []string{
		"nameserver 169.254.1.1", "nameserver 192.0.2.53", "search example.org", "options ndots:0 timeout:1", "--",
		"127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", "fe00::0\tip6-localnet", "ff00::0\tip6-mcastprefix",
		"ff02::1\tip6-allnodes", "ff02::2\tip6-allrouters", "192.0.2.7 old older", "10.64.0.9 web", "--", "lo",
	}
	var got []string
	if err := b.Logs(b.context(), b.ref, sdk.LogOptions{Follow: true}, func(line sdk.LogLine) error {
		if got = append(got, string(line.Data)); len(got) == len(want) {
			return errEnough
		}
		return nil
	}); !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the task sees %q, want %q", got, want)
	}
	if value, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/sys/net/ipv4/ip_unprivileged_port_start", started.Status.GetPid())); err != nil || strings.TrimSpace(string(value)) == "" {
		t.Errorf("read the sysctl: %q, %v", value, err)
	}

	// The next process finds the task and its namespace.
	other := newExecutor(t, b.dir)
	listed, err := other.List(b.context(), b.task.GetNodeId())
	if err != nil || len(listed) != 1 || listed[0].Namespace != path || listed[0].State != sdk.Running {
		t.Errorf("List = %+v, %v; want the running task with namespace %s", listed, err, path)
	}
	if again, err := other.Namespace(b.context(), sdk.Ref{TaskID: b.task.GetId()}); err != nil || again != path {
		t.Errorf("Namespace without a handle = %q, %v; want %q", again, err, path)
	}
	if err := other.SetNetwork(b.context(), b.task, nil, &sdk.Network{Namespace: path}); err != nil {
		t.Errorf("SetNetwork of the running task without a handle: %v", err)
	}
	if err := b.Remove(b.context(), sdk.Ref{TaskID: b.task.GetId()}); err != nil {
		t.Fatal(err)
	}
	// The Engine leaves an empty file for a while.
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err == nil && fs.Type == unix.NSFS_MAGIC {
		t.Error("after Remove the namespace is still there")
	}
}

// errEnough ends the reading of a log.
var errEnough = errors.New("enough")

func TestHostnameOfNetworkedTask(t *testing.T) {
	t.Parallel()
	spec := shell("hostname")
	spec.Hostname = "db-1"
	b := networked(t, spec)
	b.launch(&sdk.Network{Namespace: b.prepare()})
	b.wait()
	if got := b.output(); !slices.Equal(got, []string{"db-1"}) {
		t.Errorf("hostname = %q, want db-1", got)
	}
}

func TestDeathOfThePauseContainerFailsTheTask(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(b *bench) error{
		"killed while the task is waited for": func(b *bench) error {
			return b.engine.ContainerKill(b.context(), "muster-pause-"+b.task.GetId(), "SIGKILL")
		},
		"removed while the task is waited for": func(b *bench) error {
			return b.engine.ContainerRemove(b.context(), "muster-pause-"+b.task.GetId(), container.RemoveOptions{Force: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := networked(t, shell("while :; do sleep 1; done"))
			b.launch(&sdk.Network{Namespace: b.prepare()})
			waited := make(chan *sdk.Ended, 1)
			go func() {
				ended, err := b.Wait(b.context(), b.ref)
				if err != nil {
					t.Errorf("Wait: %v", err)
				}
				waited <- ended
			}()
			if err := end(b); err != nil {
				t.Fatal(err)
			}
			if ended := <-waited; ended == nil || !strings.Contains(ended.Error, "pause container") {
				t.Errorf("Wait = %+v, want that the pause container has ended", ended)
			}
			// It says so also later.
			if ended := b.wait(); !strings.Contains(ended.Error, "pause container") {
				t.Errorf("Wait again = %+v, want that the pause container has ended", ended)
			}
		})
	}
	t.Run("killed after the task has ended", func(t *testing.T) {
		t.Parallel()
		b := networked(t, shell("exit 0"))
		b.launch(&sdk.Network{Namespace: b.prepare()})
		b.wait()
		if err := b.engine.ContainerKill(b.context(), "muster-pause-"+b.task.GetId(), "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		if ended := b.wait(); ended.Error != "" || ended.Status.GetExitCode() != 0 {
			t.Errorf("Wait = %+v, want success", ended)
		}
	})
	t.Run("killed before the task starts", func(t *testing.T) {
		t.Parallel()
		b := networked(t, shell("true"))
		network := &sdk.Network{Namespace: b.prepare()}
		if err := b.engine.ContainerKill(b.context(), "muster-pause-"+b.task.GetId(), "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		if err := b.SetNetwork(b.context(), b.task, b.ref.Handle, network); fault(t, err).Temporary {
			t.Errorf("SetNetwork = %v, want a failure of the task", err)
		}
		if _, err := b.Start(b.context(), b.task, b.ref.Handle); fault(t, err).Temporary || !strings.Contains(err.Error(), "pause container") {
			t.Errorf("Start = %v, want a failure of the task that names the pause container", err)
		}
		// Prepared again, it gets another namespace.
		b.launch(&sdk.Network{Namespace: b.prepare()})
		if ended := b.wait(); ended.Error != "" || ended.Status.GetExitCode() != 0 {
			t.Errorf("Wait = %+v, want success", ended)
		}
	})
}

// Whatever a process has left of a networked task when it died, the task is listed, can be
// prepared, and Remove leaves nothing.
func TestWhatAKilledPrepareLeavesIsListedAndRemoved(t *testing.T) {
	t.Parallel()
	steps := map[string]func(b *bench){
		"a note": func(b *bench) {
			note := fmt.Sprintf(`{"taskId":%q,"nodeId":%q,"name":%q,"image":%q,"networked":true}`, b.task.GetId(), b.task.GetNodeId(), b.task.GetName(), testImage)
			if err := os.WriteFile(b.dir+"/"+b.task.GetId()+".creating", []byte(note), 0o600); err != nil {
				b.Fatal(err)
			}
		},
		"a pause container": func(b *bench) {
			b.prepare()
			if err := b.engine.ContainerRemove(b.context(), b.task.GetName(), container.RemoveOptions{}); err != nil {
				b.Fatal(err)
			}
		},
		"a pause container that was not started": func(b *bench) {
			b.prepare()
			found, err := b.engine.ContainerInspect(b.context(), "muster-pause-"+b.task.GetId())
			if err != nil {
				b.Fatal(err)
			}
			for _, name := range []string{b.task.GetName(), found.ID} {
				if err := b.engine.ContainerRemove(b.context(), name, container.RemoveOptions{Force: true}); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := b.engine.ContainerCreate(b.context(), found.Config, found.HostConfig, nil, nil, "muster-pause-"+b.task.GetId()); err != nil {
				b.Fatal(err)
			}
		},
		"a container without its pause container": func(b *bench) {
			b.prepare()
			if err := b.engine.ContainerRemove(b.context(), "muster-pause-"+b.task.GetId(), container.RemoveOptions{Force: true}); err != nil {
				b.Fatal(err)
			}
		},
	}
	for name, leave := range steps {
		for _, then := range []string{"removed", "prepared"} {
			t.Run(name+", "+then, func(t *testing.T) {
				t.Parallel()
				b := networked(t, shell("exit 7"))
				leave(b)
				b.Executor, b.ref.Handle = newExecutor(t, b.dir), nil
				listed, err := b.List(b.context(), b.task.GetNodeId())
				if err != nil || len(listed) != 1 || listed[0].TaskID != b.task.GetId() || listed[0].State != sdk.Prepared {
					t.Errorf("List = %+v, %v; want the task, prepared", listed, err)
				}
				if then == "prepared" {
					b.launch(&sdk.Network{Namespace: b.prepare()})
					if ended := b.wait(); ended.Status.GetExitCode() != 7 || ended.Error != "" {
						t.Errorf("Wait = %+v, want exit code 7", ended)
					}
				}
				if err := b.Remove(b.context(), b.ref); err != nil {
					t.Fatal(err)
				}
				if left := append(b.pauses("muster-pause-"), containers(t, b.engine, b.task.GetId(), true)...); len(left) > 0 {
					t.Errorf("there is left: %q", left)
				}
			})
		}
	}
}

func TestPrepareThatFailsLeavesNoPauseContainer(t *testing.T) {
	t.Parallel()
	b := networked(t, &musterv1.ContainerSpec{Command: []string{"/bin/sh"}, User: "0", Mounts: []*musterv1.Mount{
		{Type: musterv1.Mount_BIND, Source: "/no/such/directory/" + t.Name(), Target: "/x"},
	}})
	if _, err := b.Prepare(b.context(), b.task, nil); err == nil {
		t.Fatal("Prepare takes a mount of nothing")
	}
	if left := b.pauses("muster-pause-"); len(left) > 0 {
		t.Errorf("there is left: %q", left)
	}
}

func TestPool(t *testing.T) {
	t.Parallel()
	b := networked(t, shell("true"))
	pooled := func(dir string) *docker.Executor {
		e, err := docker.New(docker.Config{StateDir: dir, PoolSize: 2})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	b.Executor = pooled(b.dir)
	if free := b.pauses("muster-pool-"); len(free) > 0 {
		t.Errorf("before the first networked task there are %q", free)
	}
	b.launch(&sdk.Network{Namespace: b.prepare()})
	b.until("the pool is filled", func() bool { return len(b.pauses("muster-pool-")) == 2 && b.poolRuns() })

	// A new process takes them over, and the next task gets one.
	free := b.pauses("muster-pool-")
	ids := map[string]bool{}
	for _, name := range free {
		found, err := b.engine.ContainerInspect(b.context(), name)
		if err != nil {
			t.Fatal(err)
		}
		ids[found.ID] = true
	}
	b.Executor = pooled(b.dir)
	next := *b
	next.ref = sdk.Ref{TaskID: b.task.GetId() + "b"}
	next.task = &sdk.Task{Id: next.ref.TaskID, Name: "web.4." + next.ref.TaskID, NodeId: b.task.GetNodeId(), Networked: true, Spec: b.task.GetSpec()}
	path := next.prepare()
	found, err := b.engine.ContainerInspect(b.context(), "muster-pause-"+next.ref.TaskID)
	if err != nil || !ids[found.ID] {
		t.Errorf("the task has the pause container %s, %v; want one of the pool: %v", found.ID, err, ids)
	}
	next.launch(&sdk.Network{Namespace: path})
	if ended := next.wait(); ended.Status.GetExitCode() != 0 || ended.Error != "" {
		t.Errorf("Wait = %+v, want success", ended)
	}
	b.until("the pool is filled again", func() bool { return len(b.pauses("muster-pool-")) == 2 && b.poolRuns() })
	if err := next.Remove(b.context(), next.ref); err != nil {
		t.Fatal(err)
	}

	// One that was removed by hand is not missed.
	for _, name := range b.pauses("muster-pool-") {
		if err := b.engine.ContainerRemove(b.context(), name, container.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	next.ref.Handle = nil
	next.launch(&sdk.Network{Namespace: next.prepare()})
	next.wait()
	if err := next.Remove(b.context(), next.ref); err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	b.Executor = newExecutor(t, b.dir)
	b.until("the pool is gone", func() bool { return len(b.pauses("muster-pool-")) == 0 })
}

func TestPoolSizeIsRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"": 2, "0": 0, "7": 7, "-1": -1, "101": -1, "many": -1} {
		got, err := docker.PoolSize(text)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("PoolSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

// poolRuns reports whether the pause containers of the pool run.
func (b *bench) poolRuns() bool {
	b.Helper()
	for _, name := range b.pauses("muster-pool-") {
		found, err := b.engine.ContainerInspect(b.context(), name)
		if err != nil || !found.State.Running {
			return false
		}
	}
	return true
}

// until waits until something is so.
func (b *bench) until(what string, so func() bool) {
	b.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !so(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("it does not come about that %s", what)
		}
	}
}

func TestPauseImageIsLoadedAgain(t *testing.T) {
	b := networked(t, shell("true"))
	b.prepare()
	found, err := b.engine.ContainerInspect(b.context(), "muster-pause-"+b.task.GetId())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Fatal(err)
	}
	if _, err := b.engine.ImageRemove(b.context(), found.Config.Image, image.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.ref.Handle = nil
	b.launch(&sdk.Network{Namespace: b.prepare()})
	if ended := b.wait(); ended.Status.GetExitCode() != 0 {
		t.Errorf("Wait = %+v, want success", ended)
	}
}

func TestOwnNetworks(t *testing.T) {
	t.Parallel()
	attach := func(b *bench, name string) {
		b.task.Spec.Networks = []*musterv1.NetworkAttachmentConfig{{Target: name}}
	}
	port := func(target, published uint32) []*sdk.Port {
		return []*sdk.Port{{TargetPort: target, PublishedPort: published, PublishMode: musterv1.PortConfig_HOST}}
	}
	t.Run("host", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, taskSpec(shell("while :; do sleep 1; done")))
		attach(b, "host")
		b.task.Ports = port(8080, 0)
		started := b.run()
		if got, want := inode(t, fmt.Sprintf("/proc/%d/ns/net", started.Status.GetPid())), inode(t, "/proc/self/ns/net"); got != want {
			t.Errorf("the task is in namespace %d, want the node's own, %d", got, want)
		}
		if len(started.Ports) != 1 || started.Ports[0].GetPublishedPort() != 8080 {
			t.Errorf("ports = %v, want 8080", started.Ports)
		}
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, taskSpec(shell("ls /sys/class/net")))
		attach(b, "none")
		b.run()
		b.wait()
		if got := b.output(); !slices.Equal(got, []string{"lo"}) {
			t.Errorf("interfaces = %q, want lo", got)
		}
	})
	for name, ports := range map[string][]*sdk.Port{"host": port(80, 8080), "none": port(80, 0)} {
		b := newBench(t, taskSpec(shell("true")))
		attach(b, name)
		b.task.Ports = ports
		if _, err := b.Prepare(b.context(), b.task, nil); fault(t, err).Field != "ports" {
			t.Errorf("%s: Prepare = %v, want that the ports are refused", name, err)
		}
	}
}
