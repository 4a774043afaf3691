package convert

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var (
	availabilities = enum[musterv1.NodeSpec_Availability]{
		string(swarm.NodeAvailabilityActive): musterv1.NodeSpec_ACTIVE,
		string(swarm.NodeAvailabilityPause):  musterv1.NodeSpec_PAUSE,
		string(swarm.NodeAvailabilityDrain):  musterv1.NodeSpec_DRAIN,
	}
	roles = enum[musterv1.NodeSpec_Role]{
		string(swarm.NodeRoleWorker):  musterv1.NodeSpec_WORKER,
		string(swarm.NodeRoleManager): musterv1.NodeSpec_MANAGER,
	}
	nodeStates = enum[musterv1.NodeStatus_State]{
		string(swarm.NodeStateUnknown):      musterv1.NodeStatus_UNKNOWN,
		string(swarm.NodeStateDown):         musterv1.NodeStatus_DOWN,
		string(swarm.NodeStateReady):        musterv1.NodeStatus_READY,
		string(swarm.NodeStateDisconnected): musterv1.NodeStatus_DISCONNECTED,
	}
)

// NodeRole returns Muster's value for Docker's word.
func NodeRole(word string) (musterv1.NodeSpec_Role, error) {
	f := &faults{}
	return roles.muster(f, "role", word), f.err()
}

// NodeSpec returns Muster's spec for Docker's.
func NodeSpec(s swarm.NodeSpec) (*musterv1.NodeSpec, error) {
	f := &faults{}
	if s.Name != "" {
		f.add("Name", "nodes have no names but their host names")
	}
	return &musterv1.NodeSpec{
		Labels:       s.Labels,
		Availability: availabilities.muster(f, "Availability", string(s.Availability)),
		Role:         roles.muster(f, "Role", string(s.Role)),
	}, f.err()
}

// DockerNode returns a node as Docker shows it. TLS is what the cluster's authority says of
// its root.
func DockerNode(n *musterv1.Node, tls swarm.TLSInfo) swarm.Node {
	d := n.GetDescription()
	out := swarm.Node{
		ID: n.GetId(), Meta: Meta(n.GetMeta()),
		Spec: swarm.NodeSpec{
			Annotations:  annotations("", n.GetSpec().GetLabels()),
			Role:         swarm.NodeRole(roles.docker(n.GetSpec().GetRole())),
			Availability: swarm.NodeAvailability(availabilities.docker(n.GetSpec().GetAvailability())),
		},
		Description: swarm.NodeDescription{
			Hostname: d.GetHostname(), Platform: platform(d.GetPlatform()), Resources: resources(d.GetResources()),
			Engine:  swarm.EngineDescription{EngineVersion: d.GetVersion(), Labels: d.GetLabels(), Plugins: plugins(d)},
			TLSInfo: tls,
		},
		Status: swarm.NodeStatus{
			State: swarm.NodeState(nodeStates.docker(n.GetStatus().GetState())), Message: n.GetStatus().GetMessage(), Addr: n.GetStatus().GetAddress(),
		},
	}
	if out.Status.State == "" {
		out.Status.State = swarm.NodeStateUnknown
	}
	if out.Spec.Role == "" {
		out.Spec.Role = swarm.NodeRoleWorker
	}
	if out.Spec.Availability == "" {
		out.Spec.Availability = swarm.NodeAvailabilityActive
	}
	return out
}

// plugins lists the network drivers of a node as Docker's network plugins, and its
// executors as plugins of a type of their own.
func plugins(d *musterv1.NodeDescription) []swarm.PluginDescription {
	var out []swarm.PluginDescription
	for _, e := range d.GetExecutors() {
		out = append(out, swarm.PluginDescription{Type: "Executor", Name: e.Name})
	}
	for _, p := range d.GetNetworkDrivers() {
		for _, name := range p.Drivers {
			out = append(out, swarm.PluginDescription{Type: "Network", Name: name})
		}
	}
	slices.SortFunc(out, func(a, b swarm.PluginDescription) int {
		return slices.Compare([]string{a.Type, a.Name}, []string{b.Type, b.Name})
	})
	return slices.Compact(out)
}
