package placement_test

import (
	"strings"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

func TestNodesNeedTheVolumeDriversOfMounts(t *testing.T) {
	t.Parallel()
	container := func(drivers ...string) *musterv1.ContainerSpec {
		c := &musterv1.ContainerSpec{Image: "a", Mounts: []*musterv1.Mount{
			{Type: musterv1.Mount_VOLUME, Target: "/none"}, {Type: musterv1.Mount_BIND, Source: "/a", Target: "/a"},
		}}
		for _, d := range drivers {
			c.Mounts = append(c.Mounts, &musterv1.Mount{
				Type: musterv1.Mount_VOLUME, Source: "data", Target: "/" + d, VolumeOptions: &musterv1.VolumeOptions{DriverConfig: &musterv1.Driver{Name: d}},
			})
		}
		return c
	}
	task := func(drivers ...string) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: container(drivers...)}}
	}
	grouped := task("nfs")
	grouped.Group = []*musterv1.GroupContainer{{Name: "side", Runtime: &musterv1.GroupContainer_Container{Container: container("ceph")}}}
	for name, tt := range map[string]struct {
		capabilities []string
		task         *musterv1.TaskSpec
		why          string
	}{
		"no driver is named":                   {[]string{"volume.local"}, task(), ""},
		"the executor's own driver":            {[]string{"volume.nfs"}, task("local"), ""},
		"a driver that is there":               {[]string{"logs", "volume.local", "volume.nfs"}, task("nfs", "local"), ""},
		"a driver with a tag":                  {[]string{"volume.vieux/sshfs:latest"}, task("vieux/sshfs"), ""},
		"a driver without its tag":             {[]string{"volume.vieux/sshfs"}, task("vieux/sshfs:latest"), ""},
		"an executor that names no drivers":    {[]string{"logs"}, task("nfs"), ""},
		"a driver that is missing":             {[]string{"volume.local"}, task("nfs"), `no volume driver "nfs" on 1 node`},
		"one of two that is missing":           {[]string{"volume.nfs"}, task("nfs", "ceph"), `no volume driver "ceph" on 1 node`},
		"another tag":                          {[]string{"volume.sshfs:1"}, task("sshfs"), `no volume driver "sshfs" on 1 node`},
		"a driver of a container of the group": {[]string{"volume.nfs", "groups"}, grouped, `no volume driver "ceph" on 1 node`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) {
				r.Description.Executors[0].Capabilities = tt.capabilities
			})
			r, err := placement.NewRequest("s", tt.task, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := placement.FilterNone
			if tt.why != "" {
				want = placement.FilterVolumes
			}
			if got := r.Check(node, placement.NewUsage()); got != want {
				t.Errorf("Check = %q, want %q", got, want)
			}
			if got := r.Refusals([]placement.Candidate{{Node: node, Usage: placement.NewUsage()}}).String(); !strings.Contains(got, tt.why) {
				t.Errorf("refusals = %q, want %q in it", got, tt.why)
			}
		})
	}
}
