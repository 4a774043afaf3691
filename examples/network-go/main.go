// Command muster-network-lan is an example of a network plugin for Muster: its tasks are on
// the LAN of the node's interface that a network's driver option "parent" names (macvlan).
// See docs/networks.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// lan writes down the namespace of each task, in a file named after the node and the task,
// before it does anything. So a new process can undo what a killed one did by half.
type lan struct {
	dir string

	mu       sync.Mutex
	node     string
	networks map[string]*networksdk.Network
}

func main() {
	networksdk.Serve(&lan{dir: sdk.StateDir(filepath.Join(os.TempDir(), "network-lan"))})
}

// Describe says what this plugin is.
func (*lan) Describe(context.Context) (*networksdk.Description, error) {
	_, err := exec.LookPath("ip")
	said := &networksdk.Description{Name: "lan", Version: "0.1.0", Drivers: []string{"lan"}, Healthy: err == nil}
	if err != nil {
		said.Message = "install iproute2: " + err.Error()
	}
	return said, nil
}

// Apply remembers the networks. Nothing is set up before a task is attached.
func (l *lan) Apply(_ context.Context, r *networksdk.ApplyRequest) (map[string]error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.node = r.GetNode().GetId(); r.GetComplete() {
		l.networks = map[string]*networksdk.Network{}
	}
	failed := map[string]error{}
	for _, n := range r.GetNetworks() {
		delete(l.networks, n.GetId())
		if _, err := os.Stat(filepath.Join("/sys/class/net", parent(n))); err != nil || n.GetDriver() != "lan" {
			failed[n.GetId()] = fmt.Errorf("driver %q, parent %q: want the driver lan and an interface of the node", n.GetDriver(), parent(n))
			continue
		}
		l.networks[n.GetId()] = n
	}
	for _, id := range r.GetRemovedNetworks() {
		delete(l.networks, id)
	}
	return failed, nil
}

func parent(n *networksdk.Network) string {
	return filepath.Base(cmp.Or(n.GetDriverOptions()["parent"], "eth0"))
}

// Attach makes an interface for each network, unless an earlier call did.
func (l *lan) Attach(ctx context.Context, r *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	l.mu.Lock()
	node, networks := l.node, maps.Clone(l.networks)
	l.mu.Unlock()
	if _, err := os.Stat(r.GetNamespace()); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, node+" "+r.GetTaskId()), []byte(r.GetNamespace()), 0o600); err != nil {
		return nil, err
	}
	response := &networksdk.AttachResponse{}
	for i, a := range r.GetAttachments() {
		n := networks[a.GetNetworkId()]
		if n == nil {
			return nil, sdk.NodeFault(errors.New("the network cannot be used on this node"))
		}
		if err := add(ctx, r.GetNamespace(), fmt.Sprintf("eth%d", i), temporary(r.GetTaskId(), i), n, a.GetAddresses()); err != nil {
			return nil, err
		}
		a.Interface = fmt.Sprintf("eth%d", i)
		response.Attachments = append(response.Attachments, a)
	}
	return response, nil
}

// add makes an interface in the node's namespace and moves it into the task's.
func add(ctx context.Context, namespace, name, temporary string, n *networksdk.Network, addresses []string) error {
	if ip(ctx, namespace, "link", "show", "dev", name) != nil {
		// One that a killed process has left.
		_ = ip(ctx, "", "link", "del", temporary)
		if err := ip(ctx, "", "link", "add", "link", parent(n), "name", temporary, "type", "macvlan", "mode", "bridge"); err != nil {
			return err
		}
		if err := ip(ctx, "", "link", "set", "dev", temporary, "netns", namespace, "name", name); err != nil {
			return err
		}
	}
	for i, address := range addresses {
		// The SDK has checked that there is a subnet for each.
		bits := netip.MustParsePrefix(n.GetSubnets()[i]).Bits()
		if err := ip(ctx, namespace, "address", "replace", fmt.Sprintf("%s/%d", address, bits), "dev", name); err != nil {
			return err
		}
	}
	return ip(ctx, namespace, "link", "set", "dev", name, "up")
}

// temporary is the name of an interface until it is in the task's namespace.
func temporary(task string, i int) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(task))
	return fmt.Sprintf("lan%08x%d", h.Sum32(), i)
}

// ip runs the program in a namespace; "" is the node's.
func ip(ctx context.Context, namespace string, args ...string) error {
	command := append([]string{"ip"}, args...)
	if namespace != "" {
		command = append([]string{"nsenter", "--net=" + namespace, "--"}, command...)
	}
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
	}
	return nil
}

// Detach removes the interfaces. They are gone already if the namespace is.
func (l *lan) Detach(ctx context.Context, task string) error {
	found, err := filepath.Glob(filepath.Join(l.dir, "* "+task))
	if err != nil || len(found) == 0 {
		return err
	}
	namespace, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		inHost := ip(ctx, "", "link", "del", temporary(task, i)) == nil
		if ip(ctx, string(namespace), "link", "show", "dev", name) != nil && !inHost {
			break
		}
		_ = ip(ctx, string(namespace), "link", "del", name)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return os.Remove(found[0])
}

// List returns the tasks of a node.
func (l *lan) List(_ context.Context, node string) ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var tasks []string
	for _, entry := range entries {
		if task, ok := strings.CutPrefix(entry.Name(), node+" "); ok {
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}
