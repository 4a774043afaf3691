// Package defaults is the only home of the values that hold where a spec leaves a
// field open. apid shows them, and refuses a spec that is wrong with them; what acts
// on a spec asks here for each value.
//
// Specs are stored as users wrote them. A stored spec with defaults filled in would
// have another digest than before, so that a cluster that is upgraded would replace
// its tasks with the next update that changes nothing else.
package defaults

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/taskspec"
)

const (
	replicas    = 1
	parallelism = 1
	monitor     = 5 * time.Second
	delay       = 5 * time.Second
	// StopGracePeriod is how long a task has to stop. The executor contract has the
	// same value.
	StopGracePeriod = 10 * time.Second
	// PostStopTimeout is how long a post-stop container of a group may run.
	PostStopTimeout = 30 * time.Second
	taskHistory     = 5
	// ConfigBytes bounds the data of all configs of a cluster together. Each manager
	// keeps all of it in memory, and so does the store.
	ConfigBytes = 128 << 20
)

// Replicas returns how many tasks a replicated service has. It is 0 for other modes.
func Replicas(s *musterv1.ServiceSpec) uint64 {
	r := s.GetReplicated()
	switch {
	case r == nil && s.GetMode() != nil:
		return 0
	case r == nil || r.Replicas == nil:
		return replicas
	}
	return r.GetReplicas()
}

// Parallelism returns how many tasks are replaced at a time; 0 means all.
func Parallelism(u *musterv1.UpdateConfig) uint64 {
	if u == nil {
		return parallelism
	}
	return u.GetParallelism()
}

// Monitor returns for how long a replaced task is watched.
func Monitor(u *musterv1.UpdateConfig) time.Duration {
	if u.GetMonitor() == nil {
		return monitor
	}
	return u.GetMonitor().AsDuration()
}

// FailureAction returns what an update does when too many tasks fail.
func FailureAction(u *musterv1.UpdateConfig) musterv1.UpdateConfig_FailureAction {
	if u.GetFailureAction() == musterv1.UpdateConfig_FAILURE_ACTION_UNSPECIFIED {
		return musterv1.UpdateConfig_PAUSE
	}
	return u.GetFailureAction()
}

// Order returns whether a task is stopped before its successor starts.
func Order(u *musterv1.UpdateConfig) musterv1.UpdateConfig_Order {
	if u.GetOrder() == musterv1.UpdateConfig_ORDER_UNSPECIFIED {
		return musterv1.UpdateConfig_STOP_FIRST
	}
	return u.GetOrder()
}

// RestartCondition returns when a task that has ended is followed by another.
func RestartCondition(p *musterv1.RestartPolicy) musterv1.RestartPolicy_Condition {
	if p.GetCondition() == musterv1.RestartPolicy_CONDITION_UNSPECIFIED {
		return musterv1.RestartPolicy_ANY
	}
	return p.GetCondition()
}

// RestartDelay returns how long the successor of a task that has ended waits.
func RestartDelay(p *musterv1.RestartPolicy) time.Duration {
	if p.GetDelay() == nil {
		return delay
	}
	return p.GetDelay().AsDuration()
}

// Protocol returns a port's protocol.
func Protocol(p *musterv1.PortConfig) musterv1.PortConfig_Protocol {
	if p.GetProtocol() == musterv1.PortConfig_PROTOCOL_UNSPECIFIED {
		return musterv1.PortConfig_TCP
	}
	return p.GetProtocol()
}

// EndpointMode returns whether a service has a virtual address.
func EndpointMode(e *musterv1.EndpointSpec) musterv1.EndpointSpec_Mode {
	if e.GetMode() == musterv1.EndpointSpec_MODE_UNSPECIFIED {
		return musterv1.EndpointSpec_VIP
	}
	return e.GetMode()
}

// TaskHistoryLimit returns how many tasks of a slot a cluster keeps; nil is a cluster
// without a spec.
func TaskHistoryLimit(s *musterv1.ClusterSpec) int64 {
	if o := s.GetOrchestration(); o != nil && o.TaskHistoryRetentionLimit != nil {
		return o.GetTaskHistoryRetentionLimit()
	}
	return taskHistory
}

// Service returns a copy of a spec with what it leaves open filled in.
func Service(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec = proto.CloneOf(spec)
	if spec.Mode == nil {
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{}}
	}
	if r := spec.GetReplicated(); r != nil {
		r.Replicas = proto.Uint64(Replicas(spec))
	}
	spec.Update = update(spec.Update)
	spec.Rollback = update(spec.Rollback)
	if spec.Endpoint == nil {
		spec.Endpoint = &musterv1.EndpointSpec{}
	}
	spec.Endpoint.Mode = EndpointMode(spec.Endpoint)
	spec.Endpoint.DrainDelay = durationpb.New(DrainDelay(spec.Endpoint))
	for _, p := range spec.Endpoint.Ports {
		p.Protocol = Protocol(p)
		if p.PublishMode == musterv1.PortConfig_PUBLISH_MODE_UNSPECIFIED {
			p.PublishMode = musterv1.PortConfig_INGRESS
		}
		if p.ExternalTraffic == musterv1.PortConfig_EXTERNAL_TRAFFIC_UNSPECIFIED && p.PublishMode == musterv1.PortConfig_INGRESS {
			p.ExternalTraffic = musterv1.PortConfig_CLUSTER
		}
	}
	if t := spec.Task; t != nil {
		if t.Restart == nil {
			t.Restart = &musterv1.RestartPolicy{}
		}
		t.Restart.Condition = RestartCondition(t.Restart)
		t.Restart.Delay = durationpb.New(RestartDelay(t.Restart))
		if t.Restart.Window == nil {
			t.Restart.Window = durationpb.New(0)
		}
		task(t)
	}
	return spec
}

// Runtime returns a task spec with what an executor acts on filled in. It returns
// the spec itself if it leaves nothing of that open; else a copy.
func Runtime(spec *musterv1.TaskSpec) *musterv1.TaskSpec {
	open := func(c *musterv1.ContainerSpec) bool {
		return c.StopGracePeriod == nil || c.GetPullOptions().GetPolicy() == musterv1.PullOptions_POLICY_UNSPECIFIED
	}
	postStop := func(g *musterv1.GroupContainer) bool {
		return g.GetRole() == musterv1.GroupContainer_POST_STOP && g.Timeout == nil
	}
	if !slices.ContainsFunc(taskspec.Containers(spec), open) && !slices.ContainsFunc(spec.GetGroup(), postStop) {
		return spec
	}
	spec = proto.CloneOf(spec)
	task(spec)
	return spec
}

// task fills in what the containers of a task leave open.
func task(t *musterv1.TaskSpec) {
	for _, c := range taskspec.Containers(t) {
		container(c)
	}
	for _, g := range t.GetGroup() {
		if g.Role == musterv1.GroupContainer_POST_STOP && g.Timeout == nil {
			g.Timeout = durationpb.New(PostStopTimeout)
		}
	}
}

func update(u *musterv1.UpdateConfig) *musterv1.UpdateConfig {
	filled := proto.CloneOf(u)
	if filled == nil {
		filled = &musterv1.UpdateConfig{}
	}
	filled.Parallelism = Parallelism(u)
	filled.Monitor = durationpb.New(Monitor(u))
	filled.FailureAction = FailureAction(u)
	filled.Order = Order(u)
	if filled.Delay == nil {
		filled.Delay = durationpb.New(0)
	}
	return filled
}

// container fills in what a container spec leaves open; nil is left alone.
func container(c *musterv1.ContainerSpec) {
	if c == nil {
		return
	}
	if c.StopGracePeriod == nil {
		c.StopGracePeriod = durationpb.New(StopGracePeriod)
	}
	if c.PullOptions == nil {
		c.PullOptions = &musterv1.PullOptions{}
	}
	if c.PullOptions.Policy == musterv1.PullOptions_POLICY_UNSPECIFIED {
		c.PullOptions.Policy = musterv1.PullOptions_ALWAYS
	}
}
