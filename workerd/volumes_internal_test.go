package workerd

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// keeper is an executor with one volume that is in use, and any others.
type keeper struct {
	*null.Executor
	names []string
}

func (k *keeper) Volumes(context.Context, string) ([]*sdk.Volume, error) {
	var all []*sdk.Volume
	for _, name := range k.names {
		all = append(all, &sdk.Volume{Name: name, Driver: "local", Services: []string{"made up"}, NodeId: "made up"})
	}
	return all, nil
}

func (k *keeper) RemoveVolume(_ context.Context, name string) error {
	if name == "used" {
		return sdk.VolumeInUse(name, errors.New("task t1 has it"))
	}
	return sdk.NoVolume(name)
}

func TestVolumesOfExecutorsAreListedAndRemoved(t *testing.T) {
	t.Parallel()
	plugin, err := null.New(null.Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	of := func(e sdk.Executor) volumes {
		set, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(e)))
		if err != nil {
			t.Fatal(err)
		}
		return volumes{set, "n1"}
	}
	list := func(names ...string) volumes { return of(&keeper{plugin, names}) }
	v := list("used", "b", "a")
	all, err := v.List(t.Context())
	var names []string
	for _, one := range all {
		names = append(names, one.Name)
		if one.Executor != "null" || one.NodeId != "" || len(one.Services) > 0 {
			t.Errorf("listed %v: want the executor and nothing that it made up", one)
		}
	}
	if err != nil || strings.Join(names, " ") != "a b used" {
		t.Errorf("List = %q, %v", names, err)
	}
	if err := v.Remove(t.Context(), "used"); executor.ErrorOf(err).Code != codes.FailedPrecondition || !strings.Contains(err.Error(), "t1") {
		t.Errorf("Remove of a volume in use = %v", err)
	}
	if err := v.Remove(t.Context(), "none"); executor.ErrorOf(err).Code != codes.NotFound {
		t.Errorf("Remove of an unknown volume = %v", err)
	}
	if all, err := of(plugin).List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("List without an executor that keeps volumes = %v, %v", all, err)
	}
	many, err := list(make([]string, 6000)...).List(t.Context())
	if len(many) != mostVolumes || err == nil {
		t.Errorf("of 6000 volumes %d are listed, with the error %v", len(many), err)
	}
}
