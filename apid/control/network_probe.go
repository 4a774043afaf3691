package control

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/probes"
	"github.com/musterhq/muster/internal/defaults"
)

// TestNetwork has a node try whether a service is reached on a network.
func (s *Server) TestNetwork(ctx context.Context, req *musterv1.TestNetworkRequest) (*musterv1.TestNetworkResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	service, err := s.services.id(ctx, req.Service)
	if err != nil {
		return nil, err
	}
	resp := &musterv1.TestNetworkResponse{ServiceId: service}
	if req.Network != "" {
		if resp.NetworkId, err = s.networks.id(ctx, req.Network); err != nil {
			return nil, err
		}
	}
	if req.Node != "" {
		if resp.NodeId, err = s.nodes.id(ctx, req.Node); err != nil {
			return nil, err
		}
	}
	name := ""
	s.View.Read(func(r *objects.Reader) {
		name = r.ServiceName(service)
		err = chooseProbe(r, resp)
	})
	if err != nil {
		return nil, err
	}
	tried, err := s.opt.Prober.Probe(ctx, resp.NodeId, resp.NetworkId, service)
	if err != nil {
		return nil, err
	}
	resp.Source = tried.GetSource()
	reports := map[string]string{}
	s.View.Read(func(r *objects.Reader) {
		for _, c := range tried.GetChecks() {
			t := &musterv1.TestedConnection{Check: c, NodeName: hostnameOf(r, c.NodeId), TaskName: c.TaskId}
			if task, ok := r.Task(c.TaskId); ok {
				t.TaskName = r.TaskSource(task)
			}
			resp.Checks = append(resp.Checks, t)
			reports[c.NodeId] = pluginMessage(r, c.NodeId, resp.NetworkId)
		}
	})
	probes.Sort(resp.Checks)
	resp.Problems = probes.Conclude(name, resp.NodeName, resp.Checks, reports)
	resp.Ok = len(resp.Problems) == 0
	return resp, nil
}

// chooseProbe fills in the network and the node of a probe.
func chooseProbe(r *objects.Reader, resp *musterv1.TestNetworkResponse) error {
	s, ok := r.Service(resp.ServiceId)
	if !ok {
		return status.Error(codes.NotFound, "the service was removed")
	}
	on := r.NetworksOf(s)
	if len(on) == 0 {
		return status.Errorf(codes.FailedPrecondition, "service %q is on no network: attach it with muster service update --network-add NETWORK", r.ServiceName(s.ID))
	}
	resp.NetworkId = cmp.Or(resp.NetworkId, on[0])
	n, ok := r.Network(resp.NetworkId)
	if !ok {
		return status.Error(codes.NotFound, "the network was removed")
	}
	resp.NetworkName = n.Name()
	if !slices.Contains(on, n.ID) {
		return status.Errorf(codes.FailedPrecondition, "service %q is not on network %q", r.ServiceName(s.ID), n.Name())
	}
	if resp.NodeId == "" {
		resp.NodeId = r.NodeOn(n.ID)
	}
	if resp.NodeId == "" {
		return status.Errorf(codes.FailedPrecondition, "no node that is up has addresses of network %q yet: start a service on it", n.Name())
	}
	resp.NodeName = hostnameOf(r, resp.NodeId)
	return nil
}

// pluginMessage returns what a node's plugin for a network says of itself, if anything.
func pluginMessage(r *objects.Reader, node, network string) string {
	on, known := r.Network(network)
	n, ok := r.Node(node)
	if !known || !ok {
		return ""
	}
	driver := cmp.Or(on.Record.GetSpec().GetDriver().GetName(), defaults.NetworkDriver)
	for _, d := range n.State.GetDescription().GetNetworkDrivers() {
		if slices.Contains(d.Drivers, driver) {
			return d.Message
		}
	}
	return ""
}

// hostnameOf returns what people call a node.
func hostnameOf(r *objects.Reader, id string) string {
	n, ok := r.Node(id)
	if !ok {
		return id
	}
	return cmp.Or(n.Hostname(), id)
}
