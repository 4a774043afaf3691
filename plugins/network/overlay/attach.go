//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
	"github.com/musterhq/muster/plugins/sdk"
)

// Attach connects a task's namespace to its networks.
func (p *Plugin) Attach(ctx context.Context, request *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	t := &task{id: request.GetTaskId(), request: proto.CloneOf(request)}
	p.mu.Lock()
	t.node = p.node.GetId()
	if request.GetNamespace() == "" {
		t.request.Namespace = p.taskPath(t.node, t.id)
	}
	err := p.checkPorts(t)
	if err == nil {
		p.tasks[t.id] = t
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := t.write(p.config.StateDir); err != nil {
		return nil, sdk.NodeFault(err)
	}
	if err := p.names.Attach(ctx, t.request); err != nil {
		return nil, sdk.Temporary(err, 0)
	}
	space, err := p.openTask(t, request.GetNamespace() == "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = space.Close() }()
	response := &networkv1.AttachResponse{
		Nameservers: []string{link.Gateway.String()}, Ports: t.request.GetPorts(), Namespace: p.mounts().Visible(t.request.GetNamespace()),
	}
	for i, a := range t.request.GetAttachments() {
		got := proto.CloneOf(a)
		if got.Interface, err = p.attach(t, i, space); err != nil {
			return nil, fmt.Errorf("attach to network %s: %w", a.GetNetworkId(), err)
		}
		response.Attachments = append(response.Attachments, got)
	}
	return response, nil
}

// openTask opens a task's namespace. One that the plugin makes is created if it is not
// there.
func (p *Plugin) openTask(t *task, own bool) (*netns.Namespace, error) {
	var space *netns.Namespace
	var err error
	if space, err = p.mounts().Open(t.request.GetNamespace()); own && err != nil {
		err = p.kernel().Do("create namespace of task", func() (err error) {
			space, _, err = p.mounts().Create(t.request.GetNamespace())
			return err
		})
	}
	switch {
	case errors.Is(err, netns.ErrNone):
		return nil, sdk.Failed(err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, sdk.Failed(fmt.Errorf("the task's network namespace is gone: %w", err))
	case err != nil:
		return nil, sdk.NodeFault(fmt.Errorf("open network namespace of the task: %w", err))
	case space.Same(p.host):
		return nil, errors.Join(sdk.Failed(fmt.Errorf("%s is the network namespace of the host", space.Path)), space.Close())
	}
	return space, nil
}

// publishes reports whether a task's ports lead into a network: the one of its default
// route, so that answers go the way that requests came.
func (p *Plugin) publishes(t *task, network string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(t.request.GetPorts()) > 0 && p.defaultOf(t) == network
}

// defaultOf returns the network of a task's default route; empty if all are internal.
// The caller holds p.mu.
func (p *Plugin) defaultOf(t *task) string {
	for _, a := range t.request.GetAttachments() {
		if n := p.networks[a.GetNetworkId()]; n != nil && !n.internal.Load() {
			return n.id
		}
	}
	return ""
}

// reachesOutside reports whether a task may open connections to what is outside of its
// networks. A published port alone gives no way out to a task of internal networks.
func (p *Plugin) reachesOutside(t *task) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	others := false
	for _, a := range t.request.GetAttachments() {
		n := p.networks[a.GetNetworkId()]
		if n != nil && n.ingress.Load() {
			continue
		}
		if n != nil && !n.internal.Load() {
			return true
		}
		others = true
	}
	return !others
}

// checkPorts refuses ports that cannot be published. The caller holds p.mu.
func (p *Plugin) checkPorts(t *task) error {
	if len(t.request.GetPorts()) > 0 && p.defaultOf(t) == "" {
		return sdk.Failed(errors.New("ports cannot be published: all networks of the task are internal; attach the service to one that is not"))
	}
	for _, port := range t.request.GetPorts() {
		if port.GetProtocol() == musterv1.PortConfig_UDP && port.GetPublishedPort() == p.node.GetDataPathPort() {
			return sdk.NodeFault(fmt.Errorf("UDP port %d cannot be published on this node, which gets the traffic of networks there", port.GetPublishedPort()))
		}
		for _, other := range p.tasks {
			if other.id == t.id {
				continue
			}
			for _, taken := range other.request.GetPorts() {
				if taken.GetPublishedPort() == port.GetPublishedPort() && taken.GetProtocol() == port.GetProtocol() {
					return sdk.NodeFault(fmt.Errorf("port %d is published by task %s of this node", port.GetPublishedPort(), other.id))
				}
			}
		}
	}
	return nil
}

// attach makes a task's interface on one of its networks, and returns its name.
func (p *Plugin) attach(t *task, i int, space *netns.Namespace) (string, error) {
	a := t.request.GetAttachments()[i]
	p.mu.Lock()
	n := p.networks[a.GetNetworkId()]
	standard := p.defaultOf(t)
	p.mu.Unlock()
	if n == nil {
		return "", sdk.Temporary(errors.New("the network is not set up on this node"), 0)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ready {
		return "", sdk.Temporary(errors.New("the network is not set up on this node"), 0)
	}
	name, err := n.kernel.AttachNetwork(n.sandbox, space, n.placeOf(t, i, standard))
	if err != nil {
		return "", err
	}
	n.tasks[t.id] = t
	if err := n.ensureTask(t); err != nil {
		return "", err
	}
	return name, nil
}

// placeOf returns a task's place on the network. Standard is the network of its default
// route.
func (n *network) placeOf(t *task, i int, standard string) *link.Interface {
	return &link.Interface{
		Task: t.id, Network: n.id, Index: i, Subnets: n.subnets(), Addresses: t.addressesOn(n.id),
		Default: n.id == standard, Names: n.id == standard || standard == "" && i == 0,
	}
}

// ensureTask changes what concerns one task.
func (n *network) ensureTask(t *task) error {
	err := n.eachTable(func(six bool, table *ruleset.Table) error {
		n.putTask(table, six, t)
		return table.Commit()
	})
	if err == nil && len(t.request.GetPorts()) > 0 {
		err = n.plugin.edge.update(n)
	}
	return err
}

// MakesNamespaces says that the plugin makes the namespace of a task that brings none.
func (*Plugin) MakesNamespaces() {}

// Detach undoes Attach. It may come before the networks were applied.
func (p *Plugin) Detach(ctx context.Context, id string) error {
	p.mu.Lock()
	t := p.tasks[id]
	networks := slices.Collect(maps.Values(p.networks))
	node := p.node.GetId()
	p.mu.Unlock()
	if node == "" && t != nil {
		node = t.node
	}
	known := make(map[string]bool)
	for _, n := range networks {
		known[p.pathOf(node, n.id)] = true
		if err := n.detach(id); err != nil {
			return err
		}
	}
	paths, err := p.spaces(node)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if !known[path] {
			if err := p.detachFrom(path, id, t); err != nil {
				return err
			}
		}
	}
	if err := p.removeTaskSpace(p.taskPath(node, id)); err != nil {
		return err
	}
	if err := p.names.Detach(ctx, id); err != nil {
		return err
	}
	if t == nil {
		return nil
	}
	if err := removeRecord(p.config.StateDir, id); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tasks, id)
	return nil
}

// detachFrom removes a task's interface in a namespace whose network this process does not
// know.
func (p *Plugin) detachFrom(path, id string, t *task) error {
	var networks []string
	if t != nil {
		for _, a := range t.request.GetAttachments() {
			networks = append(networks, a.GetNetworkId())
		}
	}
	space, err := p.mounts().Open(path)
	if errors.Is(err, netns.ErrNone) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(p.kernel().DetachTask(space, id, networks), space.Close())
}

func (p *Plugin) removeTaskSpace(path string) error {
	space, err := p.mounts().Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = space.Close()
	}
	if err != nil && !errors.Is(err, netns.ErrNone) {
		return err
	}
	return p.kernel().Do("remove namespace of task", func() error { return p.mounts().Remove(path) })
}

func (n *network) detach(id string) error {
	stale, err := n.detachTask(id)
	return errors.Join(err, stale())
}

// detachTask removes a task from the network. The function that it returns removes
// connections that lead nowhere.
func (n *network) detachTask(id string) (stale func() error, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	stale = func() error { return nil }
	if n.sandbox == nil {
		return stale, nil
	}
	if err := n.kernel.DetachNetwork(n.sandbox.Space, id, n.id); err != nil {
		return stale, err
	}
	t := n.tasks[id]
	if t == nil {
		return stale, nil
	}
	delete(n.tasks, id)
	err = n.eachTable(func(_ bool, table *ruleset.Table) error {
		table.Put("task "+id, nil)
		return table.Commit()
	})
	if len(t.request.GetPorts()) > 0 {
		err = errors.Join(err, n.plugin.edge.update(n))
		stale = n.staleFlows()
	}
	return stale, err
}
