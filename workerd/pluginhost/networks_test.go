package pluginhost_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// networkScript puts a network plugin into a directory.
func networkScript(t *testing.T, dir, name, how string) string {
	t.Helper()
	path := script(t, t.TempDir(), name, how)
	moved := filepath.Join(dir, pluginhost.NetworkPrefix+name)
	if err := errors.Join(os.Rename(path, moved), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	return moved
}

// describedNetwork waits until the one network plugin of a host is described as wanted.
func describedNetwork(t *testing.T, h *pluginhost.Host, want func(*network.Described) bool) *network.Described {
	t.Helper()
	ctx := deadline(t)
	set := h.Networks()
	for {
		all := set.Describe(ctx)
		if len(all) == 1 && want(all[0]) {
			return all[0]
		}
		select {
		case <-set.Changes():
		case <-ctx.Done():
			t.Fatalf("described: %v", all)
		}
	}
}

func TestNetworkPluginsAreHostedBesideExecutors(t *testing.T) {
	t.Parallel()
	dir, states := t.TempDir(), t.TempDir()
	script(t, dir, "both", "good")
	networkScript(t, dir, "both", "network")
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs, cfg.NetworkStateDir = []string{dir}, states })
	d := describedNetwork(t, h, (*network.Described).Healthy)
	if d.Name != "both" || d.Description.GetVersion() != "3.1" || !d.Serves("overlay") || d.Description.GetChecksum() == "" {
		t.Errorf("described: %v", d.Description)
	}
	if _, err := os.Stat(filepath.Join(states, "both", "pid")); err != nil {
		t.Errorf("state directory: %v", err)
	}
	executors := h.Describe(deadline(t))
	if len(executors) != 1 || executors[0].Name != "both" || !executors[0].Runs("null") {
		t.Errorf("executors: %v", executors)
	}
	applied, err := d.Plugin.Apply(deadline(t), &network.Change{
		Complete: true, Node: network.Node{ID: "node1"}, Networks: []*networkv1.Network{{Id: "n", Name: "backend", Driver: "overlay"}},
	})
	if err != nil || len(applied.Failed) != 1 || applied.Failed["n"] != "no kernel module" {
		t.Errorf("Apply = %v, %v", applied, err)
	}
	_, err = d.Plugin.Attach(deadline(t), &network.Task{ID: "t", Attachments: []network.Attachment{{NetworkID: "n"}}})
	if e := executor.ErrorOf(err); e == nil || !strings.HasPrefix(e.Error(), "network plugin both: ") {
		t.Errorf("Attach = %#v", e)
	}
}

func TestEachProcessOfANetworkPluginIsAnother(t *testing.T) {
	t.Parallel()
	dir, states := t.TempDir(), t.TempDir()
	networkScript(t, dir, "overlay", "network")
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs, cfg.NetworkStateDir = []string{dir}, states })
	first := describedNetwork(t, h, (*network.Described).Healthy)
	again := describedNetwork(t, h, (*network.Described).Healthy)
	if first.Plugin != again.Plugin {
		t.Error("one process is described as two")
	}
	if err := syscall.Kill(pidOf(t, filepath.Join(states, "overlay")), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	describedNetwork(t, h, func(d *network.Described) bool { return d.Plugin != nil && d.Plugin != first.Plugin })
	_, err := first.Plugin.List(deadline(t), "node1")
	if e := executor.ErrorOf(err); e == nil || !e.Temporary || !strings.Contains(e.Error(), "network plugin overlay: plugin's process ended: signal: killed") {
		t.Errorf("List of the former process = %v", err)
	}
}

func TestNetworkPluginsArePinnedByTheirFiles(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pin  string
		want musterv1.ExecutorDescription_Health
	}{
		"the file":                 {pluginhost.NetworkPrefix + "overlay", musterv1.ExecutorDescription_UNHEALTHY},
		"an executor of that name": {"overlay", musterv1.ExecutorDescription_HEALTHY},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			networkScript(t, dir, "overlay", "network")
			h, _, _ := host(t, func(cfg *pluginhost.Config) {
				cfg.Dirs, cfg.NetworkStateDir = []string{dir}, t.TempDir()
				cfg.Checksums = map[string]string{test.pin: strings.Repeat("0a", 32)}
			})
			d := describedNetwork(t, h, func(d *network.Described) bool {
				return d.Description.GetHealth() == test.want && d.Description.GetMessage() != "it is being started"
			})
			if refused := strings.Contains(d.Description.GetMessage(), "is refused: its checksum is"); refused != (d.Plugin == nil) {
				t.Errorf("described: %v", d.Description)
			}
		})
	}
}

// brokenNetwork is a network plugin that cannot do what it is asked.
type brokenNetwork struct{}

func (brokenNetwork) Describe(context.Context) (*networksdk.Description, error) {
	return &networksdk.Description{Name: "test", Version: "3.1", Healthy: true, Drivers: []string{"overlay"}}, nil
}

func (brokenNetwork) Apply(_ context.Context, req *networksdk.ApplyRequest) (map[string]error, error) {
	failed := map[string]error{}
	for _, n := range req.GetNetworks() {
		failed[n.GetId()] = errors.New("no kernel module")
	}
	return failed, nil
}

func (brokenNetwork) Attach(context.Context, *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	return nil, errors.New("no veth")
}

func (brokenNetwork) Detach(context.Context, string) error { return nil }

func (brokenNetwork) List(context.Context, string) ([]string, error) { return nil, nil }
