package docker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
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
