package docker_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

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
		"com.docker.swarm.task.id": b.task.GetId(), "com.docker.swarm.task.name": b.task.GetName(), "com.docker.swarm.node.id": b.task.GetNodeId(),
		"com.docker.swarm.service.id": "sid", "com.docker.swarm.service.name": "web",
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
