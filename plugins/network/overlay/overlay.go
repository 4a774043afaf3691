//go:build linux

// Package overlay is a network plugin that connects tasks over VXLAN, with routes
// instead of a bridge.
//
// Each network has a network namespace on each node, which tasks of other networks and
// the host do not see into. The namespace holds a VXLAN device, one link for each local
// task, a link to the host, and an nftables table that balances virtual addresses and
// published ports. What lies in the kernel is the state: it outlives the process, and the
// next one compares it with what the worker asks for. Names are answered by a process that
// outlives the plugin's too.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/resident"
	"github.com/musterhq/muster/plugins/network/overlay/internal/tunnel"
)

// Drivers that the plugin serves. A bridge is an overlay without peers.
const (
	DriverOverlay = "overlay"
	DriverBridge  = "bridge"
)

// auditInterval is how often the kernel is compared with what was applied.
const auditInterval = 30 * time.Second

// Config is what an overlay plugin is given.
type Config struct {
	// Version is reported as the plugin's.
	Version string
	// StateDir keeps a record of each attached task.
	StateDir string
	// Host is the path of the network namespace that the node's addresses are in. Empty:
	// that of the process.
	Host string
	// Namespaces is the directory with the names of network namespaces. Empty:
	// /run/netns.
	Namespaces string
	// Machine is the directory in /proc of a process that has the machine's mounts. Empty:
	// that of the first one.
	Machine string
	// Resolvers is the file with the node's resolvers. Empty: /etc/resolv.conf.
	Resolvers string
	// Encryption is about encrypted networks.
	Encryption Encryption
	Logger     *zap.Logger
}

// Plugin is the network plugin.
type Plugin struct {
	config Config
	log    *zap.Logger
	host   *netns.Namespace
	// before is called before each change of the kernel. Tests end the process there.
	before func(string) error

	// applying is held by Apply and by audits, which change networks as a whole.
	applying sync.Mutex
	// mu guards what follows. It is not held during calls to the kernel.
	mu       sync.Mutex
	node     *networkv1.Node
	networks map[string]*network
	tasks    map[string]*task
	// known is set once a complete request was carried out.
	known bool

	edge      *edge
	tunnel    *tunnel.Tunnel
	names     *resident.Client
	repairs   atomic.Uint64
	lastApply atomic.Int64
	// differs has room for one, and receives when the kernel may differ from what was
	// applied.
	differs chan struct{}
	probe   func() (*probe, error)

	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// New returns a plugin. It reads the records of tasks that an earlier process attached.
func New(config Config) (*Plugin, error) {
	if config.Namespaces == "" {
		config.Namespaces = "/run/netns"
	}
	if config.Host == "" {
		config.Host = resident.OwnSpace
	}
	if config.Machine == "" {
		config.Machine = "/proc/1"
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	host, err := netns.Open(config.Host)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of the host: %w", err)
	}
	p := &Plugin{config: config, log: config.Logger, host: host, networks: make(map[string]*network), differs: make(chan struct{}, 1)}
	p.edge = &edge{plugin: p}
	p.names = p.newNames()
	p.probe = untilComplete(detect)
	if p.tasks, err = readTasks(config.StateDir); err != nil {
		return nil, errors.Join(err, host.Close())
	}
	if p.tunnel, err = p.newTunnel(); err != nil {
		return nil, errors.Join(err, host.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	p.stopped.Go(func() { p.auditAlways(ctx) })
	p.stopped.Go(func() { p.names.Resume(ctx) })
	return p, nil
}

// Close releases what the process holds. Networks and tasks stay connected, and names are
// answered.
func (p *Plugin) Close() error {
	p.stop()
	p.stopped.Wait()
	err := p.names.Close()
	p.applying.Lock()
	defer p.applying.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, n := range p.networks {
		errs = append(errs, n.close())
	}
	return errors.Join(append(errs, err, p.edge.close(), p.tunnel.Close(), p.host.Close())...)
}

// prefix begins the names of all network namespaces of a node.
func prefix(node string) string { return "muster-" + link.Short(node) + "-" }

// pathOf returns the path of a network's namespace.
func (p *Plugin) pathOf(node, network string) string {
	return filepath.Join(p.config.Namespaces, prefix(node)+link.Short(network))
}

// taskPath returns the path of a namespace that the plugin makes for a task. The letter
// keeps it apart from those of networks.
func (p *Plugin) taskPath(node, task string) string {
	return filepath.Join(p.config.Namespaces, prefix(node)+"t"+strings.TrimPrefix(link.TaskLink(task, ""), link.TaskPrefix))
}

// pathOfTunnel returns the path of the namespace of encrypted packets. Like those of tasks
// it begins with a letter that none of a network begins with.
func (p *Plugin) pathOfTunnel(node string) string {
	return filepath.Join(p.config.Namespaces, prefix(node)+"tunnel")
}

// spaces returns the paths of the namespaces of networks that the node has, with or
// without this process knowing them.
func (p *Plugin) spaces(node string) ([]string, error) {
	entries, err := os.ReadDir(p.config.Namespaces)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if rest, ours := strings.CutPrefix(e.Name(), prefix(node)); ours && !strings.HasPrefix(rest, "t") {
			paths = append(paths, filepath.Join(p.config.Namespaces, e.Name()))
		}
	}
	return paths, nil
}

func (p *Plugin) mounts() netns.Mounts { return netns.Mounts{Process: p.config.Machine} }

// kernel returns what makes changes in the kernel and counts them.
func (p *Plugin) kernel() *link.Kernel {
	return &link.Kernel{Mounts: p.mounts(), Before: func(call string) error {
		if p.before == nil {
			return nil
		}
		return p.before(call)
	}}
}

// List returns the ids of all tasks that have a record or an interface.
func (p *Plugin) List(_ context.Context, nodeID string) ([]string, error) {
	seen := make(map[string]bool)
	p.mu.Lock()
	for id, t := range p.tasks {
		// The node of a record that cannot be read is not known.
		if t.node == nodeID || t.node == "" {
			seen[id] = true
		}
	}
	p.mu.Unlock()
	paths, err := p.spaces(nodeID)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		space, err := p.mounts().Open(path)
		if errors.Is(err, netns.ErrNone) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ids, err := link.Tasks(space)
		if err = errors.Join(err, space.Close()); err != nil {
			return nil, err
		}
		for _, id := range ids {
			seen[id] = true
		}
	}
	ids := make([]string, 0, len(seen))
	for id := range seen {
		ids = append(ids, id)
	}
	return ids, nil
}

// parseAddresses reads addresses that the SDK has checked. It leaves out what is none.
func parseAddresses(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			all = append(all, a.Unmap())
		}
	}
	return all
}

func parsePrefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}
