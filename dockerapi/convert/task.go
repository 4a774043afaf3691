package convert

import (
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var restartConditions = enum[musterv1.RestartPolicy_Condition]{
	string(swarm.RestartPolicyConditionNone):      musterv1.RestartPolicy_NONE,
	string(swarm.RestartPolicyConditionOnFailure): musterv1.RestartPolicy_ON_FAILURE,
	string(swarm.RestartPolicyConditionAny):       musterv1.RestartPolicy_ANY,
}

func taskSpec(f *faults, field string, t swarm.TaskSpec) *musterv1.TaskSpec {
	if t.PluginSpec != nil {
		f.add(field+".PluginSpec", "engine plugins are not run as services")
	}
	if t.NetworkAttachmentSpec != nil {
		f.add(field+".NetworkAttachmentSpec", "containers that are not tasks do not join networks of the cluster")
	}
	if t.Runtime != "" && t.Runtime != swarm.RuntimeContainer {
		f.add(field+".Runtime", "invalid value %q: want container", t.Runtime)
	}
	if t.ContainerSpec == nil {
		f.add(field+".ContainerSpec", "must be given")
	}
	return &musterv1.TaskSpec{
		Runtime:     &musterv1.TaskSpec_Container{Container: containerSpec(f, field+".ContainerSpec", value(t.ContainerSpec))},
		Resources:   requirements(f, field+".Resources", t.Resources),
		Restart:     restartPolicy(f, field+".RestartPolicy", t.RestartPolicy),
		Placement:   placement(f, field+".Placement", t.Placement),
		LogDriver:   logDriver(t.LogDriver),
		ForceUpdate: t.ForceUpdate,
		Networks: each(t.Networks, func(n swarm.NetworkAttachmentConfig) *musterv1.NetworkAttachmentConfig {
			return &musterv1.NetworkAttachmentConfig{Target: n.Target, Aliases: n.Aliases, DriverOptions: n.DriverOpts}
		}),
	}
}

func logDriver(d *swarm.Driver) *musterv1.LogDriver {
	if d == nil {
		return nil
	}
	return &musterv1.LogDriver{Name: d.Name, Options: d.Options}
}

func requirements(f *faults, field string, r *swarm.ResourceRequirements) *musterv1.ResourceRequirements {
	if r == nil {
		return nil
	}
	out := &musterv1.ResourceRequirements{SwapBytes: r.SwapBytes, MemorySwappiness: r.MemorySwappiness}
	// Docker's clients unset it so.
	if r.MemorySwappiness != nil && *r.MemorySwappiness == -1 {
		out.MemorySwappiness = nil
	}
	if l := r.Limits; l != nil {
		out.Limits = &musterv1.Limits{NanoCpus: l.NanoCPUs, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
	}
	if v := r.Reservations; v != nil {
		out.Reservations = &musterv1.Resources{NanoCpus: v.NanoCPUs, MemoryBytes: v.MemoryBytes}
		for i, g := range v.GenericResources {
			at := index(field+".Reservations.GenericResources", i)
			named, discrete := g.NamedResourceSpec, g.DiscreteResourceSpec
			switch {
			case named != nil && discrete != nil:
				f.add(at, "NamedResourceSpec and DiscreteResourceSpec exclude each other")
			case named != nil:
				out.Reservations.Generic = append(out.Reservations.Generic, &musterv1.GenericResource{Kind: named.Kind, Resource: &musterv1.GenericResource_Named{Named: named.Value}})
			case discrete != nil:
				out.Reservations.Generic = append(out.Reservations.Generic, &musterv1.GenericResource{Kind: discrete.Kind, Resource: &musterv1.GenericResource_Discrete{Discrete: discrete.Value}})
			default:
				f.add(at, "NamedResourceSpec or DiscreteResourceSpec must be given")
			}
		}
	}
	return out
}

func restartPolicy(f *faults, field string, p *swarm.RestartPolicy) *musterv1.RestartPolicy {
	if p == nil {
		return nil
	}
	return &musterv1.RestartPolicy{
		Condition: restartConditions.muster(f, field+".Condition", string(p.Condition)),
		Delay:     optionalDuration(p.Delay), MaxAttempts: value(p.MaxAttempts), Window: optionalDuration(p.Window),
	}
}

func placement(f *faults, field string, p *swarm.Placement) *musterv1.Placement {
	if p == nil {
		return nil
	}
	out := &musterv1.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxReplicas}
	for i, v := range p.Preferences {
		if v.Spread == nil {
			f.add(index(field+".Preferences", i)+".Spread", "must be given")
			continue
		}
		out.Preferences = append(out.Preferences, &musterv1.PlacementPreference{Preference: &musterv1.PlacementPreference_Spread{
			Spread: &musterv1.SpreadOver{SpreadDescriptor: v.Spread.SpreadDescriptor},
		}})
	}
	for _, v := range p.Platforms {
		out.Platforms = append(out.Platforms, &musterv1.Platform{Architecture: v.Architecture, Os: v.OS})
	}
	return out
}

// DockerTaskSpec returns Docker's spec of tasks for Muster's. A task of another executor is
// shown as a container whose image is the executor's kind, because clients expect one.
func DockerTaskSpec(t *musterv1.TaskSpec) swarm.TaskSpec {
	out := swarm.TaskSpec{
		ContainerSpec: dockerContainerSpec(t.GetContainer()),
		Resources:     dockerRequirements(t.GetResources()),
		RestartPolicy: dockerRestartPolicy(t.GetRestart()),
		Placement:     dockerPlacement(t.GetPlacement()),
		ForceUpdate:   t.GetForceUpdate(),
		Runtime:       swarm.RuntimeContainer,
		Networks: each(t.GetNetworks(), func(n *musterv1.NetworkAttachmentConfig) swarm.NetworkAttachmentConfig {
			return swarm.NetworkAttachmentConfig{Target: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOptions}
		}),
	}
	if g := t.GetGeneric(); g != nil {
		out.ContainerSpec = &swarm.ContainerSpec{Image: g.Kind}
	}
	if out.ContainerSpec == nil {
		out.ContainerSpec = &swarm.ContainerSpec{}
	}
	if l := t.GetLogDriver(); l != nil {
		out.LogDriver = &swarm.Driver{Name: l.Name, Options: l.Options}
	}
	return out
}

func dockerRequirements(r *musterv1.ResourceRequirements) *swarm.ResourceRequirements {
	if r == nil {
		return nil
	}
	out := &swarm.ResourceRequirements{SwapBytes: r.SwapBytes, MemorySwappiness: r.MemorySwappiness}
	if l := r.Limits; l != nil {
		out.Limits = &swarm.Limit{NanoCPUs: l.NanoCpus, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
	}
	if v := r.Reservations; v != nil {
		reserved := resources(v)
		out.Reservations = &reserved
	}
	return out
}

func resources(r *musterv1.Resources) swarm.Resources {
	return swarm.Resources{NanoCPUs: r.GetNanoCpus(), MemoryBytes: r.GetMemoryBytes(), GenericResources: each(r.GetGeneric(), genericResource)}
}

func genericResource(g *musterv1.GenericResource) swarm.GenericResource {
	if named, ok := g.Resource.(*musterv1.GenericResource_Named); ok {
		return swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: g.Kind, Value: named.Named}}
	}
	return swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: g.Kind, Value: g.GetDiscrete()}}
}

func dockerRestartPolicy(p *musterv1.RestartPolicy) *swarm.RestartPolicy {
	if p == nil {
		return nil
	}
	attempts := p.MaxAttempts
	return &swarm.RestartPolicy{
		Condition: swarm.RestartPolicyCondition(restartConditions.docker(p.Condition)),
		Delay:     dockerDuration(p.Delay), MaxAttempts: &attempts, Window: dockerDuration(p.Window),
	}
}

func dockerPlacement(p *musterv1.Placement) *swarm.Placement {
	if p == nil {
		return nil
	}
	return &swarm.Placement{
		Constraints: p.Constraints, MaxReplicas: p.MaxReplicas,
		Preferences: each(p.Preferences, func(v *musterv1.PlacementPreference) swarm.PlacementPreference {
			return swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: v.GetSpread().GetSpreadDescriptor()}}
		}),
		Platforms: each(p.Platforms, platform),
	}
}

func platform(p *musterv1.Platform) swarm.Platform {
	return swarm.Platform{Architecture: p.GetArchitecture(), OS: p.GetOs()}
}

// TaskState returns Docker's word for a state of tasks.
func TaskState(s musterv1.TaskState) swarm.TaskState {
	if s == musterv1.TaskState_TASK_STATE_UNSPECIFIED {
		return swarm.TaskStateNew
	}
	return swarm.TaskState(strings.ToLower(s.String()))
}

// DockerTask returns a task as Docker shows it. Networks holds those of the cluster by id,
// as far as they are known.
func DockerTask(t *musterv1.Task, networks map[string]*musterv1.Network) swarm.Task {
	out := swarm.Task{
		ID: t.GetId(), Meta: Meta(t.GetMeta()), Annotations: annotations(t.GetName(), nil),
		Spec: DockerTaskSpec(t.GetSpec()), ServiceID: t.GetServiceId(), Slot: int(t.GetSlot()), NodeID: t.GetNodeId(),
		DesiredState: TaskState(t.GetDesiredState()),
		Status: swarm.TaskStatus{
			Timestamp: instant(t.GetStatus().GetTimestamp()), State: TaskState(t.GetStatus().GetState()),
			Message: t.GetStatus().GetMessage(), Err: t.GetStatus().GetError(),
			PortStatus: swarm.PortStatus{Ports: ports(t.GetStatus().GetPorts())},
		},
		GenericResources: each(t.GetAssignedGenericResources(), genericResource),
		Volumes:          []swarm.VolumeAttachment{},
	}
	if r := t.GetStatus().GetRuntime(); r != nil {
		out.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: r.Id, PID: int(r.Pid), ExitCode: int(r.ExitCode)}
	}
	if t.GetJobIteration() > 0 {
		out.JobIteration = &swarm.Version{Index: t.GetJobIteration()}
	}
	out.NetworksAttachments = each(Attachments(t), func(a *musterv1.NetworkAttachment) swarm.NetworkAttachment {
		n := networks[a.NetworkId]
		if n == nil {
			n = &musterv1.Network{Id: a.NetworkId}
		}
		return swarm.NetworkAttachment{
			Network:   swarmNetwork(n),
			Addresses: each(a.Addresses, func(address string) netip.Prefix { return within(address, n) }),
		}
	})
	return out
}

// Attachments returns the networks that a task is on, or those that it was given while it
// does not run yet.
func Attachments(t *musterv1.Task) []*musterv1.NetworkAttachment {
	if attached := t.GetStatus().GetNetworks(); len(attached) > 0 {
		return attached
	}
	return t.GetNetworks()
}

// within gives an address the prefix length of the network's subnet that holds it.
func within(address string, n *musterv1.Network) netip.Prefix {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return prefix(address)
	}
	for _, c := range n.GetIpam().GetConfigs() {
		if subnet := prefix(c.Subnet); subnet.Contains(a) {
			return netip.PrefixFrom(a, subnet.Bits())
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}
