//go:build linux

package process_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/sdk"
)

// networked returns a bench whose task is attached to networks, and a namespace for it.
func networked(t *testing.T, spec *musterv1.TaskSpec) (*bench, string) {
	t.Helper()
	dir := t.TempDir()
	path, remove, err := conformance.NewNamespace(dir)
	if err != nil {
		t.Skipf("no network namespace can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Errorf("remove the network namespace: %v", err)
		}
	})
	b := newBench(t, spec)
	b.task.Networked = true
	b.task.Spec.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "n"}}
	return b, path
}

func TestNetworkedProcessRunsInItsNamespace(t *testing.T) {
	t.Parallel()
	for name, user := range map[string]string{"root": "root", "another user": "65534"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, path := networked(t, spec(t, map[string]any{
				"user":  user,
				"shell": "readlink /proc/self/ns/net; cat /etc/resolv.conf; tail -n 1 /etc/hosts; echo $MUSTER_PORT_80; grep -c localhost /etc/hosts",
			}))
			b.task.Ports = []*sdk.Port{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
			before := etc(t)
			if _, err := b.Prepare(b.Context(), b.task, nil); err != nil {
				t.Fatal(err)
			}
			if err := b.SetNetwork(b.Context(), b.task, nil, &sdk.Network{
				Namespace: path, Nameservers: []string{"169.254.1.1"}, Search: []string{"example.org"}, Options: []string{"ndots:0"},
				Hosts: []string{"10.64.0.9 web"},
			}); err != nil {
				t.Fatal(err)
			}
			started, err := b.Start(b.Context(), b.task, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(started.Ports) > 0 {
				t.Errorf("Start says that the task has the node's ports %v", started.Ports)
			}
			if ended := b.wait(); ended.Status.GetExitCode() != 0 {
				t.Errorf("exit code = %d", ended.Status.GetExitCode())
			}
			var stat unix.Stat_t
			if err := unix.Stat(path, &stat); err != nil {
				t.Fatal(err)
			}
			want := []string{
				fmt.Sprintf("net:[%d]", stat.Ino), "nameserver 169.254.1.1", "search example.org", "options ndots:0", "10.64.0.9 web", "80",
			}
			if got := b.output(); len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) || got[len(want)] == "0" {
				t.Errorf("the task sees %q, want %q and lines for localhost", got, want)
			}
			if after := etc(t); after != before {
				t.Errorf("the node's files were %q and are %q", before, after)
			}
		})
	}
}

// etc returns what the node's processes see of the files that a task sees its own of.
func etc(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/proc/self/mountinfo"} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if path != "/proc/self/mountinfo" || strings.Contains(line, "/etc/") {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

func TestNodesNameServersAreKeptWithoutOthers(t *testing.T) {
	t.Parallel()
	b, path := networked(t, spec(t, map[string]any{"shell": "cat /etc/resolv.conf"}))
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip("the node has no resolv.conf")
	}
	if _, err := b.Prepare(b.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.SetNetwork(b.Context(), b.task, nil, &sdk.Network{Namespace: path}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(b.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	b.wait()
	if got := strings.Join(b.output(), "\n"); strings.TrimSpace(got) != strings.TrimSpace(string(want)) {
		t.Errorf("resolv.conf = %q, want that of the node, %q", got, want)
	}
}

func TestProcessWithoutItsNamespaceDoesNotStart(t *testing.T) {
	t.Parallel()
	ordinary := t.TempDir() + "/file"
	if err := os.WriteFile(ordinary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, network := range map[string]*sdk.Network{
		"a path of nothing":        {Namespace: ordinary + "x"},
		"a path of another file":   {Namespace: ordinary},
		"a mount namespace's path": {Namespace: "/proc/self/ns/mnt"},
		"no network":               nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _ := networked(t, spec(t, map[string]any{"shell": "true"}))
			if _, err := b.Prepare(b.Context(), b.task, nil); err != nil {
				t.Fatal(err)
			}
			if network != nil {
				if err := b.SetNetwork(b.Context(), b.task, nil, network); err != nil {
					t.Fatal(err)
				}
			}
			_, err := b.Start(b.Context(), b.task, nil)
			if err == nil || !strings.Contains(err.Error(), "network") {
				t.Errorf("Start = %v, want an error about the network", err)
			}
		})
	}
}

func TestHostNetworkIsTheNodesOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "readlink /proc/self/ns/net; echo $MUSTER_PORT_80"}))
	b.task.Spec.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "host"}}
	b.task.Ports = []*sdk.Port{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
	started := b.run()
	b.wait()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if len(started.Ports) != 1 || started.Ports[0].GetPublishedPort() == 0 {
		t.Fatalf("ports = %v, want one that was chosen", started.Ports)
	}
	if got, want := b.output(), []string{own, fmt.Sprint(started.Ports[0].GetPublishedPort())}; !slices.Equal(got, want) {
		t.Errorf("the task sees %q, want %q", got, want)
	}
}
