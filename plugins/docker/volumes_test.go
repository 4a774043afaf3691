package docker_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
	"golang.org/x/sys/unix"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	testneed "github.com/musterhq/muster/test/kit/need"
)

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

// TestMountOptionsAreHonoured looks at every option of mounts from within a container.
func TestMountOptionsAreHonoured(t *testing.T) {
	t.Parallel()
	b := engine(t)
	name := fmt.Sprintf("muster-test-options-%d", time.Now().UnixNano())
	dir := t.TempDir()
	for _, sub := range []string{"tree/below", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mountAt(t, filepath.Join(dir, "tree/below"))
	if err := os.WriteFile(filepath.Join(dir, "tree/below/file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(target string, readOnly bool, o *musterv1.BindOptions) *musterv1.Mount {
		return &musterv1.Mount{Type: musterv1.Mount_BIND, Source: filepath.Join(dir, "tree"), Target: target, ReadOnly: readOnly, BindOptions: o, Consistency: "consistent"}
	}
	spec := shell(strings.Join([]string{
		"ls /whole /flat", "touch /writable/below/new && echo below is writable", "touch /writable/new || echo writable is read-only",
		"grep -E ' /(shared|slave|scratch|disk) ' /proc/self/mountinfo", "touch /fixed/x || echo fixed is read-only",
	}, "; "))
	options := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1234"}
	spec.Mounts = []*musterv1.Mount{
		bind("/whole", false, nil), bind("/flat", false, &musterv1.BindOptions{NonRecursive: true}),
		bind("/writable", true, &musterv1.BindOptions{ReadOnlyNonRecursive: true}),
		bind("/shared", false, &musterv1.BindOptions{Propagation: "rshared"}), bind("/slave", false, &musterv1.BindOptions{Propagation: "rslave"}),
		{Type: musterv1.Mount_TMPFS, Target: "/scratch", TmpfsOptions: &musterv1.TmpfsOptions{SizeBytes: 2 << 20, Mode: 0o1770}},
		{Type: musterv1.Mount_VOLUME, Source: name, Target: "/disk", VolumeOptions: &musterv1.VolumeOptions{
			Labels: map[string]string{"team": "blue"}, DriverConfig: &musterv1.Driver{Name: "local", Options: options},
		}},
		{Type: musterv1.Mount_VOLUME, Source: name, Target: "/fixed", ReadOnly: true},
		{Type: musterv1.Mount_VOLUME, Target: "/tmp"},
	}
	o := newBench(t, taskSpec(spec))
	o.Cleanup(func() {
		if err := b.VolumeRemove(context.Background(), name, true); err != nil {
			t.Error(err)
		}
	})
	o.run()
	o.wait()
	said := strings.Join(o.output(), "\n")
	for _, want := range []string{
		"/whole:\nbelow", "/flat:\nbelow", "below is writable", "writable is read-only", "fixed is read-only", "size=2048k", "mode=1770", "size=1024k", "uid=1234",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the container does not say %q: %s", want, said)
		}
	}
	for point, field := range map[string]string{" /shared ": " shared:", " /slave ": " master:"} {
		if line := lineWith(said, point); !strings.Contains(line, field) {
			t.Errorf("mount %s has no %q: %s", point, field, line)
		}
	}
	made, err := b.VolumeInspect(t.Context(), name)
	if err != nil || made.Labels["team"] != "blue" || made.Labels["com.musterhq.node.id"] != o.task.GetNodeId() || !maps.Equal(made.Options, options) {
		t.Errorf("the volume is %+v, %v", made, err)
	}
	found := o.inspect()
	if err := o.Remove(o.context(), o.ref); err != nil {
		t.Error(err)
	}
	for _, m := range found.HostConfig.Mounts {
		if want := m.Target == "/flat"; (m.BindOptions != nil && m.BindOptions.NonRecursive) != want {
			t.Errorf("mount %s: bind options %+v", m.Target, m.BindOptions)
		}
	}
}

func TestNoCopyLeavesVolumesEmpty(t *testing.T) {
	t.Parallel()
	copied := shell("ls /etc; echo end")
	copied.Mounts = []*musterv1.Mount{{Type: musterv1.Mount_VOLUME, Target: "/etc"}}
	empty := shell("ls /etc; echo end")
	empty.Mounts = []*musterv1.Mount{{Type: musterv1.Mount_VOLUME, Target: "/etc", VolumeOptions: &musterv1.VolumeOptions{NoCopy: true}}}
	for want, spec := range map[bool]*musterv1.ContainerSpec{true: copied, false: empty} {
		b := newBench(t, taskSpec(spec))
		b.run()
		b.wait()
		if got := slices.Contains(b.output(), "passwd"); got != want {
			t.Errorf("volume with noCopy %t has the files of the image: %t", !want, got)
		}
	}
}

// TestVolumesWithOtherOptionsAreRefused has a volume that exists, which the Engine would
// use whatever the mount asks for.
func TestVolumesWithOtherOptionsAreRefused(t *testing.T) {
	t.Parallel()
	c := engine(t)
	name := fmt.Sprintf("muster-test-other-%d", time.Now().UnixNano())
	if _, err := c.VolumeCreate(t.Context(), volume.CreateOptions{Name: name, DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.VolumeRemove(context.Background(), name, true); err != nil {
			t.Error(err)
		}
	})
	for field, driver := range map[string]*musterv1.Driver{
		"":                                      {Name: "local"},
		"volume_options.driver_config.options":  {Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}},
		"volume_options.driver_config.name":     {Name: "rexray"},
		"volume_options.driver_config.options ": {Name: "local", Options: map[string]string{"type": "nfs"}},
	} {
		spec := shell("true")
		spec.Mounts = []*musterv1.Mount{{Type: musterv1.Mount_VOLUME, Source: name, Target: "/x", VolumeOptions: &musterv1.VolumeOptions{DriverConfig: driver}}}
		b := newBench(t, taskSpec(spec))
		_, err := b.Prepare(b.context(), b.task, nil)
		if field == "" {
			if err != nil {
				t.Errorf("Prepare with the options that the volume has: %v", err)
			}
			continue
		}
		if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), "mounts[0]."+strings.TrimSpace(field)) {
			t.Errorf("%s: Prepare = %+v (%v)", driver, got, got)
		}
	}
}

// mountAt mounts a file system at a directory for the time of the test, and has others see
// what is mounted below the directory of it.
func mountAt(t *testing.T, dir string) {
	t.Helper()
	parent := filepath.Dir(dir)
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{{parent, parent, "", unix.MS_BIND}, {"", parent, "", unix.MS_SHARED}, {"tmpfs", dir, "tmpfs", 0}} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			testneed.Met(t, fmt.Errorf("mount a file system: %w", err))
		}
		if m.flags != unix.MS_SHARED {
			t.Cleanup(func() {
				if err := unix.Unmount(m.target, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// lineWith returns the first line that holds a text.
func lineWith(lines, text string) string {
	for line := range strings.SplitSeq(lines, "\n") {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func TestVolumeDriversOfTheEngineAreReported(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	said, err := b.Describe(b.context())
	if err != nil || !slices.Contains(said.GetVolumeDrivers(), "local") {
		t.Errorf("volume drivers = %q, %v; want the Engine's own", said.GetVolumeDrivers(), err)
	}
}
