package docker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// bench is an executor in this process, and one task of it.
type bench struct {
	*testing.T
	*docker.Executor
	engine *client.Client
	dir    string
	task   *sdk.Task
	ref    sdk.Ref
}

func newExecutor(t *testing.T, dir string) *docker.Executor {
	t.Helper()
	executor, err := docker.New(docker.Config{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := executor.Close(); err != nil {
			t.Error(err)
		}
	})
	return executor
}

func newBench(t *testing.T, spec *musterv1.TaskSpec) *bench {
	t.Helper()
	c := engine(t)
	dir := t.TempDir()
	id := fmt.Sprintf("t%d", time.Now().UnixNano())
	b := &bench{T: t, Executor: newExecutor(t, dir), engine: c, dir: dir, ref: sdk.Ref{TaskID: id}, task: &sdk.Task{
		Id: id, Name: "web.3." + id, ServiceId: "sid", ServiceName: "web", Slot: 3, NodeId: "n" + id, Spec: spec,
	}}
	t.Cleanup(func() {
		if err := b.Remove(context.Background(), b.ref); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if found := containers(t, c, id, true); len(found) > 0 {
			t.Errorf("there is left: %q", found)
		}
	})
	return b
}

func (b *bench) context() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) run() *sdk.Started {
	b.Helper()
	handle, err := b.Prepare(b.context(), b.task, nil)
	if err != nil {
		b.Fatalf("Prepare: %v", err)
	}
	b.ref.Handle = handle
	started, err := b.Start(b.context(), b.task, handle)
	if err != nil {
		b.Fatalf("Start: %v", err)
	}
	return started
}

func (b *bench) wait() *sdk.Ended {
	b.Helper()
	ended, err := b.Wait(b.context(), b.ref)
	if err != nil {
		b.Fatalf("Wait: %v", err)
	}
	return ended
}

func (b *bench) output() []string {
	b.Helper()
	var lines []string
	if err := b.Logs(b.context(), b.ref, sdk.LogOptions{}, func(line sdk.LogLine) error {
		lines = append(lines, string(line.Data))
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return lines
}

func (b *bench) inspect() container.InspectResponse {
	b.Helper()
	found, err := b.engine.ContainerInspect(b.context(), b.task.GetName())
	if err != nil {
		b.Fatal(err)
	}
	return found
}

func shell(line string) *musterv1.ContainerSpec {
	return &musterv1.ContainerSpec{Command: []string{"/bin/sh", "-c", line}}
}

// fault returns the error as a worker reads it.
func fault(t *testing.T, err error) *wire.Error {
	t.Helper()
	var e *wire.Error
	if !errors.As(wire.FromStatus(wire.ToStatus(err, false)), &e) {
		t.Fatalf("no error where one was to be")
	}
	return e
}

func TestTheSpecIsHonoured(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := taskSpec(&musterv1.ContainerSpec{
		Command: []string{"/bin/sh", "-c"},
		Args: []string{strings.Join([]string{
			"pwd", "hostname", "echo $GREETING", "id -u", "id -G", "cat /mnt/file", "touch /mnt/new || echo mnt is read-only",
			"touch /new || echo root is read-only", "touch /scratch/new && echo scratch", "touch /vol/new && echo vol",
			"grep 10.1.2.3 /etc/hosts", "cat /etc/resolv.conf", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
			"ulimit -n", "grep NoNewPrivs /proc/self/status", "cat /proc/self/oom_score_adj",
		}, "; ")},
		Labels:         map[string]string{"team": "blue"},
		Hostname:       "box",
		Env:            []string{"GREETING=hello there"},
		Dir:            "/tmp",
		User:           "1234:4321",
		Groups:         []string{"777"},
		Init:           new(true),
		ReadOnly:       true,
		OpenStdin:      true,
		StopSignal:     "SIGUSR1",
		Hosts:          []string{"10.1.2.3 db.example db"},
		DnsConfig:      &musterv1.DNSConfig{Nameservers: []string{"10.9.9.9"}, Search: []string{"corp.example"}, Options: []string{"ndots:3"}},
		Sysctls:        map[string]string{"net.ipv4.ip_unprivileged_port_start": "99"},
		CapabilityAdd:  []string{"CAP_NET_ADMIN"},
		CapabilityDrop: []string{"CAP_CHOWN"},
		Ulimits:        []*musterv1.Ulimit{{Name: "nofile", Soft: 321, Hard: 654}},
		OomScoreAdj:    100,
		Privileges: &musterv1.Privileges{
			NoNewPrivileges: true,
			Seccomp:         &musterv1.SeccompOpts{Mode: musterv1.SeccompOpts_UNCONFINED},
			SelinuxContext:  &musterv1.SELinuxContext{Disable: true},
		},
		StopGracePeriod: durationpb.New(2500 * time.Millisecond),
		Mounts: []*musterv1.Mount{
			{Type: musterv1.Mount_BIND, Source: dir, Target: "/mnt", ReadOnly: true, BindOptions: &musterv1.BindOptions{Propagation: "rprivate"}},
			{Type: musterv1.Mount_TMPFS, Target: "/scratch", TmpfsOptions: &musterv1.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1777}},
			{Type: musterv1.Mount_TMPFS, Target: "/vol", TmpfsOptions: &musterv1.TmpfsOptions{Mode: 0o777}},
		},
	})
	spec.Resources = &musterv1.ResourceRequirements{Limits: &musterv1.Limits{NanoCpus: 500_000_000, MemoryBytes: 64 << 20, Pids: 50}, SwapBytes: new(int64(0))}
	spec.LogDriver = &musterv1.LogDriver{Name: "json-file", Options: map[string]string{"max-size": "1m"}}
	b := newBench(t, spec)
	b.run()
	ended := b.wait()
	want := []string{
		"/tmp", "box", "hello there", "1234", "4321 777", "from the node", "mnt is read-only", "root is read-only", "scratch", "vol",
		"10.1.2.3\tdb.example", "10.1.2.3\tdb", "nameserver 10.9.9.9", "search corp.example", "options ndots:3", "99", "321",
		"NoNewPrivs:\t1", "100",
	}
	got := b.output()
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("the container does not say %q; it ended with %v and says %q", line, ended, got)
		}
	}
	found := b.inspect()
	if found.Name != "/"+b.task.GetName() {
		t.Errorf("name = %s", found.Name)
	}
	for label, want := range map[string]string{
		"com.musterhq.task.id": b.task.GetId(), "com.musterhq.task.name": b.task.GetName(), "com.musterhq.node.id": b.task.GetNodeId(),
		"com.musterhq.service.id": "sid", "com.musterhq.service.name": "web", "com.musterhq.slot": "3", "team": "blue",
	} {
		if got := found.Config.Labels[label]; got != want {
			t.Errorf("label %s = %q, want %q", label, got, want)
		}
	}
	host := found.HostConfig
	if host.NanoCPUs != 500_000_000 || host.Memory != 64<<20 || host.PidsLimit == nil || *host.PidsLimit != 50 || host.MemorySwap != 64<<20 {
		t.Errorf("limits = %d, %d, %v, %d", host.NanoCPUs, host.Memory, host.PidsLimit, host.MemorySwap)
	}
	if host.Init == nil || !*host.Init || !slices.Contains(host.CapAdd, "CAP_NET_ADMIN") || !slices.Contains(host.CapDrop, "CAP_CHOWN") ||
		host.LogConfig.Type != "json-file" || host.LogConfig.Config["max-size"] != "1m" {
		t.Errorf("host config = %+v", host)
	}
	if found.Config.StopSignal != "SIGUSR1" || found.Config.StopTimeout == nil || *found.Config.StopTimeout != 3 || !found.Config.OpenStdin {
		t.Errorf("config = %+v", found.Config)
	}
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("muster-test-%d", time.Now().UnixNano())
	spec := shell("touch /named/x /anonymous/y")
	spec.Mounts = []*musterv1.Mount{
		{Type: musterv1.Mount_VOLUME, Source: name, Target: "/named", VolumeOptions: &musterv1.VolumeOptions{
			Labels: map[string]string{"muster-test": name}, DriverConfig: &musterv1.Driver{Name: "local"},
		}},
		{Type: musterv1.Mount_VOLUME, Target: "/anonymous"},
	}
	b := newBench(t, taskSpec(spec))
	b.Cleanup(func() {
		if err := b.engine.VolumeRemove(context.Background(), name, true); err != nil {
			t.Error(err)
		}
	})
	b.run()
	b.wait()
	var anonymous string
	for _, mount := range b.inspect().Mounts {
		if mount.Destination == "/anonymous" {
			anonymous = mount.Name
		}
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Fatal(err)
	}
	volumes, err := b.engine.VolumeList(b.context(), volume.ListOptions{Filters: filters.NewArgs()})
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, v := range volumes.Volumes {
		left[v.Name] = true
		if v.Name == name && v.Labels["muster-test"] != name {
			t.Errorf("the volume's labels are %v", v.Labels)
		}
	}
	if !left[name] || anonymous == "" || left[anonymous] {
		t.Errorf("after Remove the named volume is there: %t, the other (%q): %t", left[name], anonymous, left[anonymous])
	}
}

func TestAMissingBindSourceIsTheNodesFault(t *testing.T) {
	t.Parallel()
	spec := shell("true")
	spec.Mounts = []*musterv1.Mount{{Type: musterv1.Mount_BIND, Source: "/no/such/dir", Target: "/x"}}
	b := newBench(t, taskSpec(spec))
	_, err := b.Prepare(b.context(), b.task, nil)
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), "/no/such/dir") {
		t.Errorf("Prepare = %+v (%v)", got, got)
	}
	if listed, err := b.List(b.context(), b.task.GetNodeId()); err != nil || len(listed) != 0 {
		t.Errorf("List = %v, %v; want nothing", listed, err)
	}
}

func TestWhatTheEngineIsTooOldForIsNamed(t *testing.T) {
	t.Parallel()
	c := engine(t)
	if err := c.NewVersionError(t.Context(), "1.44", "x"); err == nil {
		t.Log("this Engine is not too old for any of it")
		return
	}
	for field, spec := range map[string]*musterv1.ContainerSpec{
		"healthcheck.start_interval": {Healthcheck: &musterv1.HealthConfig{StartInterval: durationpb.New(time.Second)}},
		"mounts[0].volume_options.subpath": {Mounts: []*musterv1.Mount{{
			Type: musterv1.Mount_VOLUME, Target: "/x", VolumeOptions: &musterv1.VolumeOptions{Subpath: "a"},
		}}},
	} {
		b := newBench(t, taskSpec(spec))
		_, err := b.Prepare(b.context(), b.task, nil)
		if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), field) {
			t.Errorf("%s: Prepare = %+v (%v)", field, got, got)
		}
	}
}

func TestACommandThatIsNotInTheImage(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(&musterv1.ContainerSpec{Command: []string{"/bin/no-such"}}))
	if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := b.Start(b.context(), b.task, nil)
		if got := fault(t, err); got.Temporary || got.Blame != wire.BlameSpec || !strings.Contains(got.Error(), "no-such") {
			t.Errorf("Start = %+v (%v)", got, got)
		}
	}
}

func TestAStrangersContainerIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	stranger, err := b.engine.ContainerCreate(b.context(), &container.Config{Image: testImage, Cmd: []string{"true"}}, nil, nil, nil, b.task.GetName())
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Prepare(b.context(), b.task, nil)
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), b.task.GetName()) {
		t.Errorf("Prepare = %+v (%v)", got, got)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if err := b.engine.ContainerRemove(b.context(), stranger.ID, container.RemoveOptions{}); err != nil {
		t.Errorf("the stranger's container is gone: %v", err)
	}
}

func TestHostPorts(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	chosen := uint32(free.Addr().(*net.TCPAddr).Port)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
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
	_, err = other.Start(other.context(), other.task, nil)
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode {
		t.Errorf("Start = %+v (%v)", got, got)
	}
}

func check(test string, retries uint32) *musterv1.HealthConfig {
	return &musterv1.HealthConfig{
		Test: []string{"CMD-SHELL", test}, Interval: durationpb.New(100 * time.Millisecond),
		Timeout: durationpb.New(5 * time.Second), Retries: retries,
	}
}

func TestStartWaitsForHealth(t *testing.T) {
	t.Parallel()
	spec := shell("sleep 1; touch /tmp/ready; while :; do sleep 0.05; done")
	spec.Healthcheck = check("test -e /tmp/ready", 100)
	spec.Healthcheck.Test = []string{"CMD", "/bin/ls", "/tmp/ready"}
	b := newBench(t, taskSpec(spec))
	begun := time.Now()
	b.run()
	if took := time.Since(begun); took < time.Second {
		t.Errorf("Start returned after %s, and the container is healthy after 1 s", took)
	}
	if health := b.inspect().State.Health; health == nil || health.Status != container.Healthy {
		t.Errorf("health = %+v", health)
	}
	// A container that was healthy and is told to stop was not unhealthy.
	if _, err := b.Shutdown(b.context(), b.ref, new(time.Second)); err != nil {
		t.Fatal(err)
	}
	if ended := b.wait(); ended.Error != "" {
		t.Errorf("Wait = %+v", ended)
	}
}

func TestStartOfAnUnhealthyContainerFails(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	spec.Healthcheck = check("echo no good; exit 1", 2)
	b := newBench(t, taskSpec(spec))
	if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	_, err := b.Start(b.context(), b.task, nil)
	if got := fault(t, err); got.Temporary || !strings.Contains(got.Error(), "unhealthy") || !strings.Contains(got.Error(), "no good") {
		t.Errorf("Start = %+v (%v)", got, got)
	}
	if b.inspect().State.Running {
		t.Error("the unhealthy container still runs")
	}
}

func TestAContainerThatEndsBeforeItIsHealthy(t *testing.T) {
	t.Parallel()
	spec := shell("sleep 0.5; exit 9")
	spec.Healthcheck = check("exit 1", 1000)
	b := newBench(t, taskSpec(spec))
	b.run()
	if ended := b.wait(); ended.Status.GetExitCode() != 9 || ended.Error != "" {
		t.Errorf("Wait = %+v, want exit code 9", ended)
	}
}

func TestAContainerThatBecomesUnhealthyIsStopped(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; touch /tmp/ready; sleep 1; rm /tmp/ready; while :; do sleep 0.05; done")
	spec.Healthcheck = check("ls /tmp/ready", 2)
	b := newBench(t, taskSpec(spec))
	b.run()
	// Whoever asks later is told the same.
	for range 2 {
		if ended := b.wait(); ended.Error != "unhealthy" {
			t.Errorf("Wait = %+v, want unhealthy", ended)
		}
	}
}

func TestOOMKill(t *testing.T) {
	t.Parallel()
	spec := taskSpec(shell("head -c 200000000 /dev/zero | tail >/dev/null; exit $?"))
	spec.Resources = &musterv1.ResourceRequirements{Limits: &musterv1.Limits{MemoryBytes: 16 << 20}, SwapBytes: new(int64(0))}
	b := newBench(t, spec)
	b.run()
	if ended := b.wait(); !ended.Status.GetOomKilled() || ended.Status.GetExitCode() == 0 {
		t.Errorf("Wait = %+v, want it killed for want of memory", ended)
	}
}

func TestTerminalOutput(t *testing.T) {
	t.Parallel()
	spec := shell("echo one; echo two >&2")
	spec.Tty = true
	b := newBench(t, taskSpec(spec))
	b.run()
	b.wait()
	if got := b.output(); !slices.Equal(got, []string{"one\r", "two\r"}) {
		t.Errorf("output = %q", got)
	}
}

func TestExecWithTerminal(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	b.run()
	input, typed := io.Pipe()
	output, shown := io.Pipe()
	resize := make(chan *sdk.TerminalSize, 1)
	resize <- &sdk.TerminalSize{Rows: 11, Columns: 22}
	type end struct {
		code int32
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := b.Exec(b.context(), b.ref, sdk.Command{Args: []string{"/bin/sh"}, TTY: true, Size: &sdk.TerminalSize{Rows: 33, Columns: 44}},
			sdk.ExecIO{Stdin: input, Stdout: shown, Stderr: shown, Resize: resize})
		ended <- end{code, errors.Join(err, shown.Close())}
	}()
	go func() {
		_, _ = io.WriteString(typed, "echo to-$((40+2)); exit 3\n")
	}()
	all, err := io.ReadAll(output)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(all), "to-42") {
		t.Errorf("the terminal shows %q", all)
	}
	if got := <-ended; got.err != nil || got.code != 3 {
		t.Errorf("Exec = %d, %v; want 3", got.code, got.err)
	}
	if err := typed.Close(); err != nil {
		t.Error(err)
	}
}

// A note of a creation whose container never came is listed, and goes with
// Remove, which leaves nothing.
func TestANoteOfACreation(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	note := fmt.Sprintf(`{"taskId":%q,"nodeId":%q,"name":%q,"image":%q}`, b.task.GetId(), b.task.GetNodeId(), b.task.GetName(), testImage)
	path := filepath.Join(b.dir, b.task.GetId()+".creating")
	if err := os.WriteFile(path, []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	listed, err := b.List(b.context(), b.task.GetNodeId())
	if err != nil || len(listed) != 1 || listed[0].TaskID != b.task.GetId() || listed[0].State != sdk.Prepared {
		t.Errorf("List = %v, %v; want the task, prepared", listed, err)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the note is still there: %v", err)
	}
	if left := containers(t, b.engine, b.task.GetId(), true); len(left) > 0 {
		t.Errorf("there is left: %q", left)
	}
}

// proxy is an Engine that can be cut off.
func proxy(t *testing.T, c *client.Client) (host string, cut func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := c.Dialer()(context.Background())
			if err != nil {
				t.Error(err)
				_ = near.Close()
				return
			}
			mu.Lock()
			open = append(open, near, far)
			mu.Unlock()
			all.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
			all.Go(func() { _, _ = io.Copy(near, far); _ = near.Close() })
		}
	})
	cut = sync.OnceFunc(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	t.Cleanup(cut)
	return "unix://" + path, cut
}

// While the Engine is away nothing is known of a task, and so nothing is said of
// it: all errors are temporary.
func TestAnEngineThatIsAwayIsTemporary(t *testing.T) {
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	c, direct := b.engine, b.Executor
	host, cut := proxy(t, c)
	t.Setenv(client.EnvOverrideHost, host)
	b.Executor = newExecutor(t, b.dir)
	b.run()
	waited := make(chan error, 1)
	go func() {
		_, err := b.Wait(b.Context(), b.ref)
		waited <- err
	}()
	if description, err := b.Describe(t.Context()); err != nil || !description.GetHealthy() {
		t.Errorf("Describe = %v, %v; want healthy", description, err)
	}
	cut()
	for name, err := range map[string]error{
		"Wait, begun before": <-waited,
		"Wait":               func() error { _, err := b.Wait(b.Context(), b.ref); return err }(),
		"Prepare":            func() error { _, err := b.Prepare(b.Context(), b.task, nil); return err }(),
		"Start":              func() error { _, err := b.Start(b.Context(), b.task, nil); return err }(),
		"Shutdown":           func() error { _, err := b.Shutdown(b.Context(), b.ref, nil); return err }(),
		"Terminate":          func() error { _, err := b.Terminate(b.Context(), b.ref); return err }(),
		"Remove":             b.Remove(b.Context(), b.ref),
		"List":               func() error { _, err := b.List(b.Context(), ""); return err }(),
	} {
		if got := fault(t, err); !got.Temporary {
			t.Errorf("%s without an Engine = %+v (%v), want a temporary error", name, got, got)
		}
	}
	if description, err := b.Describe(t.Context()); err != nil || description.GetHealthy() || description.GetMessage() == "" {
		t.Errorf("Describe = %v, %v; want unhealthy, and why", description, err)
	}
	if left := containers(t, c, b.task.GetId(), false); len(left) != 1 {
		t.Errorf("the container does not run any more: %q", left)
	}
	// The Engine is back; here by another way to it.
	b.Executor = direct
	if status, err := b.Terminate(b.Context(), b.ref); err != nil || status.GetExitCode() != 137 {
		t.Errorf("Terminate = %v, %v", status, err)
	}
}
