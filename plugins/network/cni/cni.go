//go:build linux

// Package cni is a network plugin that connects tasks through CNI: to the networks that
// the CNI configurations on the node describe, by the CNI plugins that are installed
// there. A network's driver option "config" names the configuration.
//
// What was asked of CNI is written down before it is done. So a process that was killed
// half-way is followed by one that can undo it, with the configuration as it was.
package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// Driver is the driver that the plugin serves.
const Driver = "cni"

// option is the driver option that names a configuration.
const option = "config"

// Where CNI's configurations and plugins are, unless the variables say otherwise.
const (
	confDirKey     = "NETCONFPATH"
	pluginDirsKey  = "CNI_PATH"
	defaultConfDir = "/etc/cni/net.d"
)

var defaultPluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// Config configures a Plugin.
type Config struct {
	Version string
	// StateDir is where the plugin writes down what is attached.
	StateDir string
	Logger   *zap.Logger
}

// Plugin connects tasks through CNI.
type Plugin struct {
	version string
	confDir string
	dirs    []string
	cni     libcni.CNI
	records records
	log     *zap.Logger

	mu sync.Mutex
	// node is the node of the last Apply.
	node string
	// networks are the applied networks with the names of their configurations.
	networks map[string]string
}

// New makes a plugin.
func New(cfg Config) (*Plugin, error) {
	p := &Plugin{version: cfg.Version, confDir: os.Getenv(confDirKey), log: cfg.Logger, networks: map[string]string{}}
	if p.confDir == "" {
		p.confDir = defaultConfDir
	}
	if p.dirs = filepath.SplitList(os.Getenv(pluginDirsKey)); len(p.dirs) == 0 {
		p.dirs = defaultPluginDirs
	}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	p.records.dir = filepath.Join(cfg.StateDir, "tasks")
	if err := os.MkdirAll(filepath.Join(p.records.dir, "locks"), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	p.cni = libcni.NewCNIConfigWithCacheDir(p.dirs, filepath.Join(cfg.StateDir, "cache"), newRunner())
	return p, nil
}

// Describe is healthy where there are configurations: tasks on networks of the driver are
// placed only there.
func (p *Plugin) Describe(context.Context) (*networksdk.Description, error) {
	said := &networksdk.Description{Name: Driver, Version: p.version, Drivers: []string{Driver}}
	files, err := libcni.ConfFiles(p.confDir, []string{".conflist", ".conf", ".json"})
	switch {
	case err != nil:
		said.Message = fmt.Sprintf("cannot read CNI configurations: %v", err)
	case len(files) == 0:
		said.Message = fmt.Sprintf("there is no CNI configuration in %s; write one to use networks of the driver %q on this node", p.confDir, Driver)
	case os.Geteuid() != 0:
		said.Message = "CNI plugins need root: run the worker as root"
	default:
		said.Healthy = true
	}
	return said, nil
}

// Apply looks whether the configurations are there and the CNI plugins they name too.
// They set up nothing before a task is attached.
func (p *Plugin) Apply(ctx context.Context, r *networksdk.ApplyRequest) (map[string]error, error) {
	failed, found := map[string]error{}, map[string]string{}
	for _, n := range r.GetNetworks() {
		name := n.GetDriverOptions()[option]
		if name == "" {
			name = n.GetName()
		}
		if n.GetDriver() != Driver {
			failed[n.GetId()] = fmt.Errorf("this plugin does not serve the driver %q", n.GetDriver())
			continue
		}
		found[n.GetId()] = name
		if _, err := p.load(ctx, name); err != nil {
			failed[n.GetId()] = err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node = r.GetNode().GetId()
	if r.GetComplete() {
		p.networks = map[string]string{}
	}
	for id := range failed {
		delete(p.networks, id)
	}
	for id, name := range found {
		p.networks[id] = name
	}
	for _, id := range r.GetRemovedNetworks() {
		delete(p.networks, id)
	}
	return failed, ctx.Err()
}

// load reads a configuration and checks that its plugins are installed.
func (p *Plugin) load(ctx context.Context, name string) (*libcni.NetworkConfigList, error) {
	list, err := libcni.LoadNetworkConf(p.confDir, name)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %q in %s: %w", name, p.confDir, err)
	}
	if _, err := p.cni.ValidateNetworkList(ctx, list); err != nil {
		return nil, fmt.Errorf("CNI configuration %q: %w (CNI plugins are looked for in %s)", name, err, strings.Join(p.dirs, ", "))
	}
	return list, nil
}

// Attach calls ADD for each network, unless an earlier call did and CHECK finds nothing
// wrong.
func (p *Plugin) Attach(ctx context.Context, r *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	wanted, err := p.request(r)
	if err != nil {
		return nil, err
	}
	ctx, unlock, err := p.records.lock(ctx, r.GetTaskId())
	if err != nil {
		return nil, failure(ctx, err)
	}
	defer unlock()
	old, err := p.records.find(r.GetTaskId())
	if err != nil {
		return nil, err
	}
	if old != nil {
		// That a configuration has changed since is no reason to attach a task again.
		if old.Done && reflect.DeepEqual(old.Request, wanted.Request) && p.check(ctx, old) == nil {
			return old.response(), nil
		}
		if err := p.remove(ctx, old); err != nil {
			return nil, failure(ctx, err)
		}
	}
	if err := p.plan(ctx, wanted); err != nil {
		return nil, err
	}
	if err := p.records.write(wanted); err != nil {
		return nil, err
	}
	for i := range wanted.Links {
		if err := p.add(ctx, wanted, &wanted.Links[i]); err != nil {
			return nil, err
		}
	}
	wanted.Done = true
	if err := p.records.write(wanted); err != nil {
		return nil, err
	}
	return wanted.response(), nil
}

// request returns the record of what a request asks for.
func (p *Plugin) request(r *networksdk.AttachRequest) (*record, error) {
	namespace, err := inode(r.GetNamespace())
	if err != nil {
		return nil, sdk.Failed(err)
	}
	rec := &record{Task: r.GetTaskId(), Request: request{Namespace: r.GetNamespace(), Inode: namespace}}
	for _, port := range r.GetPorts() {
		rec.Request.Ports = append(rec.Request.Ports, portMapping{
			HostPort: port.GetPublishedPort(), ContainerPort: port.GetTargetPort(), Protocol: strings.ToLower(port.GetProtocol().String()),
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rec.Node = p.node
	for _, a := range r.GetAttachments() {
		name, known := p.networks[a.GetNetworkId()]
		if !known {
			return nil, sdk.NodeFault(fmt.Errorf("network %q cannot be used on this node", a.GetNetworkId()))
		}
		rec.Request.Networks = append(rec.Request.Networks, a.GetNetworkId())
		rec.Request.Configs = append(rec.Request.Configs, name)
	}
	return rec, nil
}

// plan reads the configurations, and finds the first that publishes ports.
func (p *Plugin) plan(ctx context.Context, rec *record) error {
	ports := rec.Request.Ports
	for i, name := range rec.Request.Configs {
		list, err := p.load(ctx, name)
		if err != nil {
			return sdk.NodeFault(err)
		}
		l := newLink(rec.Request.Networks[i], fmt.Sprintf("eth%d", i), list)
		if len(ports) > 0 && publishes(list) {
			l.Ports, ports = ports, nil
		}
		rec.Links = append(rec.Links, l)
	}
	if len(ports) > 0 {
		return sdk.NodeFault(fmt.Errorf(
			"ports in mode host: no plugin of the CNI configuration %q has the capability portMappings; add the plugin portmap to it", rec.Request.Configs[0]))
	}
	return nil
}

func (p *Plugin) add(ctx context.Context, rec *record, l *link) error {
	list, err := l.list()
	if err != nil {
		return err
	}
	raw, err := p.cni.AddNetworkList(ctx, list, rec.runtime(l))
	if err != nil {
		return failure(ctx, fmt.Errorf("attach to the CNI network %q: %w", l.Name, err))
	}
	result, err := types100.NewResultFromResult(raw)
	if err != nil {
		return sdk.NodeFault(fmt.Errorf("read the result of the CNI network %q: %w", l.Name, err))
	}
	l.Addresses = nil
	for _, ip := range result.IPs {
		// Addresses of interfaces on the host's side are not the task's.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) && result.Interfaces[*i].Sandbox == "" {
			continue
		}
		l.Addresses = append(l.Addresses, ip.Address.IP.String())
	}
	l.Nameservers = result.DNS.Nameservers
	return nil
}

// failure says what an error of CNI means for the task.
func failure(ctx context.Context, err error) error {
	var e *types.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &e) && e.Code == types.ErrTryAgainLater:
		return sdk.Temporary(err, 0)
	default:
		return sdk.NodeFault(err)
	}
}

// check asks CNI whether all is as ADD left it. Configurations of old versions cannot be
// asked.
func (p *Plugin) check(ctx context.Context, rec *record) error {
	for i := range rec.Links {
		l := &rec.Links[i]
		list, err := l.list()
		if err != nil {
			return err
		}
		if err := p.cni.CheckNetworkList(ctx, list, rec.runtime(l)); err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			p.log.Warn("task is not attached as it was", zap.String("task", rec.Task), zap.String("config", l.Name), zap.Error(err))
			return err
		}
	}
	return nil
}

// remove calls DEL for each network, the last first, and forgets the task.
func (p *Plugin) remove(ctx context.Context, rec *record) error {
	for _, l := range slices.Backward(rec.Links) {
		list, err := l.list()
		if err != nil {
			return err
		}
		runtime := rec.runtime(&l)
		if now, err := inode(rec.Request.Namespace); err != nil || now != rec.Request.Inode {
			// It is gone, and what has its path now is another's.
			runtime.NetNS = ""
		}
		if err := p.cni.DelNetworkList(ctx, list, runtime); err != nil {
			return fmt.Errorf("detach from the CNI network %q: %w", l.Name, err)
		}
	}
	return p.records.remove(rec)
}

// Detach undoes Attach.
func (p *Plugin) Detach(ctx context.Context, taskID string) error {
	ctx, unlock, err := p.records.lock(ctx, taskID)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := p.records.find(taskID)
	if err == nil && rec != nil {
		err = p.remove(ctx, rec)
	}
	if err != nil {
		return err
	}
	return p.records.unlockForever(taskID)
}

// List returns the tasks of a node that are attached, or half so.
func (p *Plugin) List(_ context.Context, nodeID string) ([]string, error) {
	return p.records.list(nodeID)
}

// Stats counts networks and tasks.
func (p *Plugin) Stats(ctx context.Context) (*networksdk.Stats, error) {
	p.mu.Lock()
	node, networks := p.node, len(p.networks)
	p.mu.Unlock()
	if node == "" {
		return &networksdk.Stats{}, nil
	}
	tasks, err := p.List(ctx, node)
	return &networksdk.Stats{Networks: uint64(networks), AttachedTasks: uint64(len(tasks))}, err
}

var (
	_ networksdk.Plugin  = (*Plugin)(nil)
	_ networksdk.Statser = (*Plugin)(nil)
)
