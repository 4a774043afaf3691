// Package contractv1 adapts network plugins that speak version 1 of the contract of
// network plugins, muster.network.v1, to what the worker asks of them.
package contractv1

import (
	"context"
	"fmt"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	executorv1 "github.com/musterhq/muster/workerd/executor/contractv1"
	"github.com/musterhq/muster/workerd/network"
)

// Service is the network service of the contract, wherever it is: that of a server in
// this process, or what package muster.network.v1 generates for clients, without the
// options of calls.
type Service interface {
	Describe(context.Context, *networkv1.DescribeRequest) (*networkv1.DescribeResponse, error)
	Apply(context.Context, *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error)
	Attach(context.Context, *networkv1.AttachRequest) (*networkv1.AttachResponse, error)
	Detach(context.Context, *networkv1.DetachRequest) (*networkv1.DetachResponse, error)
	List(context.Context, *networkv1.ListRequest) (*networkv1.ListResponse, error)
	Stats(context.Context, *networkv1.StatsRequest) (*networkv1.StatsResponse, error)
	Probe(context.Context, *networkv1.ProbeRequest) (*networkv1.ProbeResponse, error)
}

// New makes a Plugin of a service of the contract.
func New(service Service) network.Plugin { return &adapter{service} }

// adapter is a plugin that speaks the contract.
type adapter struct{ service Service }

var _ network.Plugin = (*adapter)(nil)

func (a *adapter) Describe(ctx context.Context) (*network.About, error) {
	res, err := a.service.Describe(ctx, &networkv1.DescribeRequest{})
	if err != nil {
		return nil, executorv1.ErrorOf(ctx, err)
	}
	return &network.About{
		Name: res.GetName(), Version: res.GetVersion(), Healthy: res.GetHealthy(), Message: res.GetMessage(),
		Drivers: res.GetDrivers(), Capabilities: res.GetCapabilities(), Missing: res.GetMissing(), PublicKey: res.GetPublicKey(), EncryptedPort: res.GetEncryptedPort(),
	}, nil
}

func (a *adapter) Apply(ctx context.Context, c *network.Change) (*network.Applied, error) {
	unpacked, err := unpack(c.Backends)
	if err != nil {
		return nil, err
	}
	applied := &network.Applied{Failed: map[string]string{}, Warnings: map[string]string{}}
	for _, part := range networksdk.Split(&networkv1.ApplyRequest{
		Complete: c.Complete,
		Node:     &networkv1.Node{Id: c.Node.ID, DataPathAddress: c.Node.DataPathAddress, DataPathPort: c.Node.DataPathPort},
		Networks: c.Networks, RemovedNetworks: c.RemovedNetworks, Peers: c.Peers, RemovedPeers: c.RemovedPeers,
		Services: c.Services, RemovedServices: c.RemovedServices, Backends: unpacked,
	}, networksdk.PartSize) {
		res, err := a.service.Apply(ctx, part)
		if err != nil {
			return nil, executorv1.ErrorOf(ctx, err)
		}
		note(applied.Failed, res.GetErrors())
		note(applied.Warnings, res.GetWarnings())
	}
	return applied, nil
}

func note(texts map[string]string, all []*networkv1.NetworkError) {
	for _, e := range all {
		texts[e.GetNetworkId()] = e.GetMessage()
	}
}

// unpack returns backends as the contract has them.
func unpack(all []*network.Backends) ([]*networkv1.Backends, error) {
	unpacked := make([]*networkv1.Backends, len(all))
	for i, packed := range all {
		b := &networkv1.Backends{NetworkId: packed.NetworkID, ServiceId: packed.ServiceID, Complete: packed.Complete}
		var err error
		if b.Backends, b.Removed, err = backends.Unpack(slices.Concat(packed.Changes...)); err != nil {
			return nil, fmt.Errorf("service %s: %w", b.ServiceId, err)
		}
		if b.Complete {
			b.Removed = nil
		}
		unpacked[i] = b
	}
	return unpacked, nil
}

func (a *adapter) Attach(ctx context.Context, t *network.Task) (*network.Attached, error) {
	req := &networkv1.AttachRequest{
		TaskId: t.ID, TaskName: t.Name, ServiceId: t.ServiceID, ServiceName: t.ServiceName, Namespace: t.Namespace, Ports: t.Ports,
	}
	for _, at := range t.Attachments {
		req.Attachments = append(req.Attachments, &networkv1.Attachment{
			NetworkId: at.NetworkID, Addresses: at.Addresses, Aliases: at.Aliases, DriverOptions: at.DriverOptions,
		})
	}
	res, err := a.service.Attach(ctx, req)
	if err != nil {
		return nil, executorv1.ErrorOf(ctx, err)
	}
	attached := &network.Attached{Namespace: res.GetNamespace(), Nameservers: res.GetNameservers(), Ports: res.GetPorts()}
	if attached.Namespace == "" {
		attached.Namespace = t.Namespace
	}
	for _, at := range res.GetAttachments() {
		attached.Attachments = append(attached.Attachments, network.Attachment{
			NetworkID: at.GetNetworkId(), Addresses: at.GetAddresses(), Aliases: at.GetAliases(), DriverOptions: at.GetDriverOptions(),
		})
	}
	return attached, nil
}

func (a *adapter) Detach(ctx context.Context, task string) error {
	_, err := a.service.Detach(ctx, &networkv1.DetachRequest{TaskId: task})
	return executorv1.ErrorOf(ctx, err)
}

func (a *adapter) List(ctx context.Context, node string) ([]string, error) {
	res, err := a.service.List(ctx, &networkv1.ListRequest{NodeId: node})
	return res.GetTaskIds(), executorv1.ErrorOf(ctx, err)
}

func (a *adapter) Stats(ctx context.Context) (*network.Stats, error) {
	res, err := a.service.Stats(ctx, &networkv1.StatsRequest{})
	if err != nil {
		return nil, executorv1.ErrorOf(ctx, err)
	}
	return &network.Stats{
		Networks: res.GetNetworks(), Services: res.GetServices(), Backends: res.GetBackends(), Tasks: res.GetAttachedTasks(),
		DNSAnswers: res.GetDnsAnswers(), DNSFailures: res.GetDnsFailures(), DroppedPackets: res.GetDroppedPackets(),
		ConntrackEntries: res.GetConntrackEntries(), ConntrackLimit: res.GetConntrackLimit(), Repairs: res.GetRepairs(),
	}, nil
}

func (a *adapter) Probe(ctx context.Context, req *networkv1.ProbeRequest) (*networkv1.ProbeResponse, error) {
	res, err := a.service.Probe(ctx, req)
	return res, executorv1.ErrorOf(ctx, err)
}
