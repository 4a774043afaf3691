package convert

import (
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var (
	failureActions = enum[musterv1.UpdateConfig_FailureAction]{
		string(swarm.UpdateFailureActionPause):    musterv1.UpdateConfig_PAUSE,
		string(swarm.UpdateFailureActionContinue): musterv1.UpdateConfig_CONTINUE,
		string(swarm.UpdateFailureActionRollback): musterv1.UpdateConfig_ROLLBACK,
	}
	updateOrders = enum[musterv1.UpdateConfig_Order]{
		string(swarm.UpdateOrderStopFirst):  musterv1.UpdateConfig_STOP_FIRST,
		string(swarm.UpdateOrderStartFirst): musterv1.UpdateConfig_START_FIRST,
	}
	updateStates = enum[musterv1.UpdateStatus_State]{
		string(swarm.UpdateStateUpdating):          musterv1.UpdateStatus_UPDATING,
		string(swarm.UpdateStatePaused):            musterv1.UpdateStatus_PAUSED,
		string(swarm.UpdateStateCompleted):         musterv1.UpdateStatus_COMPLETED,
		string(swarm.UpdateStateRollbackStarted):   musterv1.UpdateStatus_ROLLBACK_STARTED,
		string(swarm.UpdateStateRollbackPaused):    musterv1.UpdateStatus_ROLLBACK_PAUSED,
		string(swarm.UpdateStateRollbackCompleted): musterv1.UpdateStatus_ROLLBACK_COMPLETED,
	}
	endpointModes = enum[musterv1.EndpointSpec_Mode]{
		string(swarm.ResolutionModeVIP):   musterv1.EndpointSpec_VIP,
		string(swarm.ResolutionModeDNSRR): musterv1.EndpointSpec_DNSRR,
	}
	protocols = enum[musterv1.PortConfig_Protocol]{
		string(network.TCP):  musterv1.PortConfig_TCP,
		string(network.UDP):  musterv1.PortConfig_UDP,
		string(network.SCTP): musterv1.PortConfig_SCTP,
	}
	publishModes = enum[musterv1.PortConfig_PublishMode]{
		string(swarm.PortConfigPublishModeIngress): musterv1.PortConfig_INGRESS,
		string(swarm.PortConfigPublishModeHost):    musterv1.PortConfig_HOST,
	}
)

// ServiceSpec returns Muster's spec for Docker's.
func ServiceSpec(s swarm.ServiceSpec) (*musterv1.ServiceSpec, error) {
	f := &faults{}
	out := &musterv1.ServiceSpec{
		Name: s.Name, Labels: s.Labels,
		Task:     taskSpec(f, "TaskTemplate", s.TaskTemplate),
		Update:   updateConfig(f, "UpdateConfig", s.UpdateConfig),
		Rollback: updateConfig(f, "RollbackConfig", s.RollbackConfig),
		Endpoint: endpointSpec(f, "EndpointSpec", s.EndpointSpec),
	}
	modes := 0
	if m := s.Mode.Replicated; m != nil {
		modes++
		out.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: m.Replicas}}
	}
	if s.Mode.Global != nil {
		modes++
		out.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
	}
	if m := s.Mode.ReplicatedJob; m != nil {
		modes++
		out.Mode = &musterv1.ServiceSpec_ReplicatedJob{ReplicatedJob: &musterv1.ReplicatedJob{MaxConcurrent: m.MaxConcurrent, TotalCompletions: m.TotalCompletions}}
	}
	if s.Mode.GlobalJob != nil {
		modes++
		out.Mode = &musterv1.ServiceSpec_GlobalJob{GlobalJob: &musterv1.GlobalJob{}}
	}
	if modes > 1 {
		f.add("Mode", "must specify only one service mode")
	}
	return out, f.err()
}

func updateConfig(f *faults, field string, u *swarm.UpdateConfig) *musterv1.UpdateConfig {
	if u == nil {
		return nil
	}
	return &musterv1.UpdateConfig{
		Parallelism: u.Parallelism, Delay: duration(u.Delay), Monitor: duration(u.Monitor), MaxFailureRatio: u.MaxFailureRatio,
		FailureAction: failureActions.muster(f, field+".FailureAction", string(u.FailureAction)),
		Order:         updateOrders.muster(f, field+".Order", string(u.Order)),
	}
}

func endpointSpec(f *faults, field string, e *swarm.EndpointSpec) *musterv1.EndpointSpec {
	if e == nil {
		return nil
	}
	out := &musterv1.EndpointSpec{Mode: endpointModes.muster(f, field+".Mode", string(e.Mode))}
	for i, p := range e.Ports {
		at := index(field+".Ports", i)
		out.Ports = append(out.Ports, &musterv1.PortConfig{
			Name: p.Name, TargetPort: p.TargetPort, PublishedPort: p.PublishedPort,
			Protocol:    protocols.muster(f, at+".Protocol", string(p.Protocol)),
			PublishMode: publishModes.muster(f, at+".PublishMode", string(p.PublishMode)),
		})
	}
	return out
}

// DockerService returns a service as Docker shows it. Its status is that of status=true.
func DockerService(s *musterv1.Service) swarm.Service {
	out := swarm.Service{
		ID: s.GetId(), Meta: Meta(s.GetMeta()),
		Spec: DockerServiceSpec(s.GetSpec()),
		Endpoint: swarm.Endpoint{
			Ports:      ports(s.GetEndpoint().GetPorts()),
			VirtualIPs: virtualIPs(s.GetEndpoint().GetVirtualIps()),
		},
		ServiceStatus: &swarm.ServiceStatus{
			RunningTasks: s.GetStatus().GetRunningTasks(), DesiredTasks: s.GetStatus().GetDesiredTasks(), CompletedTasks: s.GetStatus().GetCompletedTasks(),
		},
	}
	if e := dockerEndpointSpec(s.GetEndpoint().GetSpec()); e != nil {
		out.Endpoint.Spec = *e
	} else if out.Spec.EndpointSpec != nil {
		out.Endpoint.Spec = *out.Spec.EndpointSpec
	}
	if p := s.GetPreviousSpec(); p != nil {
		spec := DockerServiceSpec(p)
		out.PreviousSpec = &spec
	}
	if u := s.GetUpdateStatus(); u != nil && !outdated(s) {
		out.UpdateStatus = &swarm.UpdateStatus{
			State:     swarm.UpdateState(updateStates.docker(u.State)),
			StartedAt: optionalInstant(u.StartedAt), CompletedAt: optionalInstant(u.CompletedAt), Message: u.Message,
		}
	}
	if j := s.GetJobStatus(); j != nil {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: j.Iteration}, LastExecution: instant(j.LastExecution)}
	}
	return out
}

// outdated reports whether the service was changed after its last update was completed: it
// was scaled. In Docker each change resets the status, and a client that waits for one
// would take the end of the update before it for its end.
func outdated(s *musterv1.Service) bool {
	switch u := s.GetUpdateStatus(); u.GetState() {
	case musterv1.UpdateStatus_COMPLETED, musterv1.UpdateStatus_ROLLBACK_COMPLETED:
		return s.GetMeta().GetUpdatedAt().AsTime().After(u.GetCompletedAt().AsTime())
	default:
		return false
	}
}

// DockerServiceSpec returns Docker's spec for Muster's. What Docker's cannot hold is left
// out; Keep brings it back.
func DockerServiceSpec(s *musterv1.ServiceSpec) swarm.ServiceSpec {
	out := swarm.ServiceSpec{
		Annotations:    annotations(s.GetName(), s.GetLabels()),
		TaskTemplate:   DockerTaskSpec(s.GetTask()),
		UpdateConfig:   dockerUpdateConfig(s.GetUpdate()),
		RollbackConfig: dockerUpdateConfig(s.GetRollback()),
		EndpointSpec:   dockerEndpointSpec(s.GetEndpoint()),
	}
	switch m := s.GetMode().(type) {
	case *musterv1.ServiceSpec_Global:
		out.Mode.Global = &swarm.GlobalService{}
	case *musterv1.ServiceSpec_ReplicatedJob:
		out.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: m.ReplicatedJob.MaxConcurrent, TotalCompletions: m.ReplicatedJob.TotalCompletions}
	case *musterv1.ServiceSpec_GlobalJob:
		out.Mode.GlobalJob = &swarm.GlobalJob{}
	default:
		// Clients follow the pointer.
		replicas := uint64(1)
		if r := s.GetReplicated(); r != nil && r.Replicas != nil {
			replicas = *r.Replicas
		}
		out.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	}
	return out
}

func dockerUpdateConfig(u *musterv1.UpdateConfig) *swarm.UpdateConfig {
	if u == nil {
		return nil
	}
	return &swarm.UpdateConfig{
		Parallelism: u.Parallelism, Delay: u.Delay.AsDuration(), Monitor: u.Monitor.AsDuration(), MaxFailureRatio: u.MaxFailureRatio,
		FailureAction: swarm.FailureAction(failureActions.docker(u.FailureAction)),
		Order:         swarm.UpdateOrder(updateOrders.docker(u.Order)),
	}
}

func dockerEndpointSpec(e *musterv1.EndpointSpec) *swarm.EndpointSpec {
	if e == nil {
		return nil
	}
	return &swarm.EndpointSpec{Mode: swarm.ResolutionMode(endpointModes.docker(e.Mode)), Ports: ports(e.Ports)}
}

func ports(list []*musterv1.PortConfig) []swarm.PortConfig {
	return each(list, func(p *musterv1.PortConfig) swarm.PortConfig {
		return swarm.PortConfig{
			Name: p.Name, TargetPort: p.TargetPort, PublishedPort: p.PublishedPort,
			Protocol:    network.IPProtocol(protocols.docker(p.Protocol)),
			PublishMode: swarm.PortConfigPublishMode(publishModes.docker(p.PublishMode)),
		}
	})
}

func virtualIPs(list []*musterv1.VirtualIP) []swarm.EndpointVirtualIP {
	return each(list, func(v *musterv1.VirtualIP) swarm.EndpointVirtualIP {
		return swarm.EndpointVirtualIP{NetworkID: v.NetworkId, Addr: prefix(v.Address)}
	})
}
