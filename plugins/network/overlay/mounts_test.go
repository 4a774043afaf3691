//go:build linux

package overlay_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

const (
	mountsHost    = "MUSTER_TEST_HOST"
	mountsDir     = "MUSTER_TEST_DIR"
	mountsMachine = "MUSTER_TEST_MACHINE"
	mountsNode    = "MUSTER_TEST_NODE"
	mountsMode    = "MUSTER_TEST_MODE"
)

// TestNetworksOutliveMountsOfProcess runs a plugin as systemd does with ProtectSystem and
// ProtectKernelTunables: with mounts of its own, and /proc/sys read-only.
func TestNetworksOutliveMountsOfProcess(t *testing.T) {
	if host := os.Getenv(mountsHost); host != "" {
		inOwnMounts(t, host, os.Getenv(mountsDir))
		return
	}
	_, machines := newMachines(t, 1)
	m := machines[0]
	run := func(mode string) {
		t.Helper()
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0" -test.run='^TestNetworksOutliveMountsOfProcess$' -test.v`, os.Args[0])
		cmd.Env = append(os.Environ(), mountsHost+"="+m.space.Path, mountsDir+"="+m.dir, mountsNode+"="+m.node.GetId(), fmt.Sprintf("%s=/proc/%d", mountsMachine, os.Getpid()), mountsMode+"="+mode)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	run("make")
	path := m.plugin.SpaceOf(m.node.GetId(), "net")
	space, err := netns.Open(path)
	if err != nil {
		t.Fatalf("the network ended with the process: %v", err)
	}
	must(t, space.Close())
	// The next process has copies of the mounts that the first one has made.
	run("remove")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network was not removed: %v", err)
	}
}

func inOwnMounts(t *testing.T, host, dir string) {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); !errors.Is(err, os.ErrPermission) && err == nil {
		t.Fatal("/proc/sys can be written to: the test has lost its object")
	}
	p, err := overlay.New(overlay.Config{StateDir: filepath.Join(dir, "state"), Host: host, Namespaces: filepath.Join(dir, "spaces"), Machine: os.Getenv(mountsMachine)})
	must(t, err)
	node := &networkv1.Node{Id: os.Getenv(mountsNode), DataPathAddress: "192.0.2.1", DataPathPort: 4789}
	if os.Getenv(mountsMode) == "remove" {
		_, err := p.Apply(t.Context(), &networkv1.ApplyRequest{Complete: true, Node: node})
		must(t, err)
		must(t, p.Close())
		return
	}
	for range 2 {
		failed, err := p.Apply(t.Context(), &networkv1.ApplyRequest{Complete: true, Node: node, Networks: []*networkv1.Network{net10("net", 4097, 1, nil)}})
		must(t, err)
		must(t, failed["net"])
	}
	must(t, p.Close())
}
