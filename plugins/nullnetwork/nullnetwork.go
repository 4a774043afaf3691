// Package nullnetwork is a network plugin without a data plane, for simulation,
// measurement and tests. It keeps what it was told, as a kernel would, and checks the rules
// of the contract, see [Kernel.Violations].
package nullnetwork

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Kernel is what outlives the plugin's processes: the state of one machine.
type Kernel struct {
	mu         sync.Mutex
	networks   map[string]*Network
	tasks      map[string]*networkv1.AttachRequest
	violations []string
}

// Network is a network as it was applied.
type Network struct {
	Network  *networkv1.Network
	Peers    map[string]*networkv1.Peer
	Services map[string]*Service
}

// Service is a service on a network as it was applied.
type Service struct {
	Service  *networkv1.Service
	Backends map[string]*networkv1.Backend
}

// NewKernel returns a machine that was just started.
func NewKernel() *Kernel {
	return &Kernel{networks: map[string]*Network{}, tasks: map[string]*networkv1.AttachRequest{}}
}

// Violations returns what broke the rules: calls in the wrong order, addresses that have
// two holders or are not of the node, and objects of networks that were not applied.
func (k *Kernel) Violations() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.violations)
}

// Attached returns the attached tasks with their attachments.
func (k *Kernel) Attached() map[string]*networkv1.AttachRequest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.tasks)
}

// Networks returns copies of the networks, by id. The messages in them are shared.
func (k *Kernel) Networks() map[string]*Network {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string]*Network{}
	for id, n := range k.networks {
		c := &Network{Network: n.Network, Peers: maps.Clone(n.Peers), Services: map[string]*Service{}}
		for name, s := range n.Services {
			c.Services[name] = &Service{Service: s.Service, Backends: maps.Clone(s.Backends)}
		}
		all[id] = c
	}
	return all
}

// violated notes a violation. The caller holds mu.
func (k *Kernel) violated(format string, args ...any) {
	k.violations = append(k.violations, fmt.Sprintf(format, args...))
}

// Config is what a plugin is.
type Config struct {
	Version string
	// Drivers defaults to overlay and bridge.
	Drivers []string
	// PublicKey and EncryptedPort are reported as the node's, for encrypted networks.
	PublicKey     string
	EncryptedPort uint32
	// Fault, if set, is called before each call with the name of its method and the task's
	// id, if it is about one. An error of it is the answer to the call.
	Fault func(ctx context.Context, method, task string) error
}

// Plugin is one process of the plugin.
type Plugin struct {
	kernel *Kernel
	cfg    Config

	mu       sync.Mutex
	complete bool
	// parts is the complete set that has begun, of which more follows. The kernel's mu
	// guards it.
	parts    map[string]*Network
	applying bool
	calling  map[string]bool
}

// New returns a process of the plugin on a machine.
func New(kernel *Kernel, cfg Config) *Plugin {
	if cfg.Drivers == nil {
		cfg.Drivers = []string{"overlay", "bridge"}
	}
	return &Plugin{kernel: kernel, cfg: cfg, calling: map[string]bool{}}
}

// begin notes a call, and returns the function that ends it.
func (p *Plugin) begin(ctx context.Context, method, task string) (end func(), err error) {
	p.mu.Lock()
	switch {
	case method == "Apply" && p.applying:
		p.violated("two calls of Apply are open")
	case method == "Apply":
		p.applying = true
	case !p.complete:
		p.violated("%s of task %q comes before a complete Apply", method, task)
	}
	if task != "" && p.calling[task] {
		p.violated("two calls for task %s are open", task)
	}
	p.calling[task] = task != ""
	p.mu.Unlock()
	end = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.calling, task)
		if method == "Apply" {
			p.applying = false
		}
	}
	if p.cfg.Fault != nil {
		if err := p.cfg.Fault(ctx, method, task); err != nil {
			end()
			return nil, err
		}
	}
	return end, nil
}

func (p *Plugin) violated(format string, args ...any) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.kernel.violated(format, args...)
}

// Describe says what the plugin is.
func (p *Plugin) Describe(context.Context, *networkv1.DescribeRequest) (*networkv1.DescribeResponse, error) {
	return &networkv1.DescribeResponse{
		Name: "null", Version: p.cfg.Version, Healthy: true, Drivers: p.cfg.Drivers, Capabilities: []string{"ipv6", "ingress", "encrypted", "stats", "probe"},
		PublicKey: []byte(p.cfg.PublicKey), EncryptedPort: p.cfg.EncryptedPort,
	}, nil
}

// Apply keeps what it is told.
func (p *Plugin) Apply(ctx context.Context, req *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	end, err := p.begin(ctx, "Apply", "")
	if err != nil {
		return nil, err
	}
	defer end()
	k := p.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	p.mu.Lock()
	if !p.complete && !req.GetComplete() && p.parts == nil {
		k.violated("the first Apply of a process is not complete")
	}
	p.complete = p.complete || !req.GetMore()
	p.mu.Unlock()
	if req.GetNode().GetId() == "" {
		k.violated("Apply names no node")
	}
	if req.GetComplete() {
		p.parts = map[string]*Network{}
	}
	if p.parts == nil {
		k.change(k.networks, req)
		return &networkv1.ApplyResponse{}, nil
	}
	k.change(p.parts, req)
	if !req.GetMore() {
		k.networks, p.parts = p.parts, nil
	}
	return &networkv1.ApplyResponse{}, nil
}

// change takes a request into networks. The caller holds mu.
func (k *Kernel) change(networks map[string]*Network, req *networkv1.ApplyRequest) {
	for _, id := range req.GetRemovedNetworks() {
		delete(networks, id)
	}
	for _, n := range req.GetNetworks() {
		if known := networks[n.GetId()]; known != nil {
			known.Network = n
			continue
		}
		networks[n.GetId()] = &Network{Network: n, Peers: map[string]*networkv1.Peer{}, Services: map[string]*Service{}}
	}
	k.applyMembers(networks, req)
}

// applyMembers takes in peers, services and backends. The caller holds mu.
func (k *Kernel) applyMembers(networks map[string]*Network, req *networkv1.ApplyRequest) {
	network := func(id string) *Network {
		n := networks[id]
		if n == nil {
			k.violated("Apply names a member of network %s, which was not applied", id)
			n = &Network{Peers: map[string]*networkv1.Peer{}, Services: map[string]*Service{}}
		}
		return n
	}
	for _, peer := range req.GetPeers() {
		network(peer.GetNetworkId()).Peers[peer.GetNodeId()] = peer
	}
	for _, ref := range req.GetRemovedPeers() {
		delete(network(ref.GetNetworkId()).Peers, ref.GetNodeId())
	}
	for _, ref := range req.GetRemovedServices() {
		delete(network(ref.GetNetworkId()).Services, ref.GetServiceId())
	}
	for _, s := range req.GetServices() {
		services := network(s.GetNetworkId()).Services
		if known := services[s.GetId()]; known != nil {
			known.Service = s
			continue
		}
		services[s.GetId()] = &Service{Service: s, Backends: map[string]*networkv1.Backend{}}
	}
	for _, b := range req.GetBackends() {
		s := network(b.GetNetworkId()).Services[b.GetServiceId()]
		if s == nil {
			k.violated("Apply names backends of service %s, which was not applied", b.GetServiceId())
			continue
		}
		if b.GetComplete() {
			s.Backends = map[string]*networkv1.Backend{}
		}
		for _, backend := range b.GetBackends() {
			s.Backends[backend.GetTaskId()] = backend
		}
		for _, id := range b.GetRemoved() {
			delete(s.Backends, id)
		}
	}
}

// Attach keeps a task's attachments.
func (p *Plugin) Attach(ctx context.Context, req *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	end, err := p.begin(ctx, "Attach", req.GetTaskId())
	if err != nil {
		return nil, err
	}
	defer end()
	k := p.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, at := range req.GetAttachments() {
		n := k.networks[at.GetNetworkId()]
		if n == nil {
			k.violated("task %s is attached to network %s, which was not applied", req.GetTaskId(), at.GetNetworkId())
			return nil, status.Errorf(codes.FailedPrecondition, "network %s was not applied", at.GetNetworkId())
		}
		k.checkAddresses(req.GetTaskId(), n.Network, at)
	}
	known := k.tasks[req.GetTaskId()]
	if known != nil && !slices.EqualFunc(known.GetAttachments(), req.GetAttachments(), func(a, b *networkv1.Attachment) bool { return proto.Equal(a, b) }) {
		k.violated("task %s changes its place without being detached", req.GetTaskId())
	}
	k.tasks[req.GetTaskId()] = req
	namespace := req.GetNamespace()
	if namespace == "" {
		namespace = "/run/netns/null-" + req.GetTaskId()
	}
	return &networkv1.AttachResponse{
		Attachments: req.GetAttachments(), Nameservers: []string{"169.254.1.1"}, Ports: req.GetPorts(), Namespace: namespace,
	}, nil
}

// checkAddresses checks the addresses of a task on one network. The caller holds mu.
func (k *Kernel) checkAddresses(task string, n *networkv1.Network, at *networkv1.Attachment) {
	if len(at.GetAddresses()) != len(n.GetSubnets()) {
		k.violated("task %s has %d addresses on network %s of %d subnets", task, len(at.GetAddresses()), n.GetId(), len(n.GetSubnets()))
	}
	for _, text := range at.GetAddresses() {
		a, err := netip.ParseAddr(text)
		inside := err == nil && slices.ContainsFunc(n.GetBlocks(), func(block string) bool {
			prefix, err := netip.ParsePrefix(block)
			return err == nil && prefix.Contains(a)
		})
		if known := k.tasks[task]; !inside && known == nil {
			k.violated("address %s of task %s is not in the node's blocks %v", text, task, n.GetBlocks())
		}
		if slices.Contains(n.GetNodeAddresses(), text) || slices.Contains(n.GetReservedAddresses(), text) {
			k.violated("address %s of task %s is the node's own or reserved", text, task)
		}
		for id, other := range k.tasks {
			if id == task {
				continue
			}
			for _, theirs := range other.GetAttachments() {
				if theirs.GetNetworkId() == n.GetId() && slices.Contains(theirs.GetAddresses(), text) {
					k.violated("address %s of network %s has two holders, tasks %s and %s", text, n.GetId(), id, task)
				}
			}
		}
	}
}

// Detach forgets a task.
func (p *Plugin) Detach(ctx context.Context, req *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	end, err := p.begin(ctx, "Detach", req.GetTaskId())
	if err != nil {
		return nil, err
	}
	defer end()
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	delete(p.kernel.tasks, req.GetTaskId())
	return &networkv1.DetachResponse{}, nil
}

// List returns the attached tasks.
func (p *Plugin) List(ctx context.Context, _ *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	end, err := p.begin(ctx, "List", "")
	if err != nil {
		return nil, err
	}
	defer end()
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	return &networkv1.ListResponse{TaskIds: slices.Sorted(maps.Keys(p.kernel.tasks))}, nil
}

// Stats counts what is applied and attached.
func (p *Plugin) Stats(context.Context, *networkv1.StatsRequest) (*networkv1.StatsResponse, error) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	res := &networkv1.StatsResponse{Networks: uint64(len(p.kernel.networks)), AttachedTasks: uint64(len(p.kernel.tasks))}
	for _, n := range p.kernel.networks {
		res.Services += uint64(len(n.Services))
		for _, s := range n.Services {
			res.Backends += uint64(len(s.Backends))
		}
	}
	return res, nil
}

// Probe returns one successful attempt for each backend of a service.
func (p *Plugin) Probe(_ context.Context, req *networkv1.ProbeRequest) (*networkv1.ProbeResponse, error) {
	n := p.kernel.Networks()[req.GetNetworkId()]
	if n == nil || n.Services[req.GetServiceId()] == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "service %s on network %s was not applied", req.GetServiceId(), req.GetNetworkId())
	}
	res := &networkv1.ProbeResponse{}
	for _, id := range slices.Sorted(maps.Keys(n.Services[req.GetServiceId()].Backends)) {
		res.Checks = append(res.Checks, &musterv1.NetworkCheck{Kind: musterv1.NetworkCheck_TASK, Result: musterv1.NetworkCheck_OK, TaskId: id})
	}
	return res, nil
}
