package control

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// withDefaults returns a copy of a spec with what it leaves open filled in.
// Defaults are never stored: what is stored is what the user said.
func withDefaults(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec = proto.CloneOf(spec)
	if spec.Mode == nil {
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{}}
	}
	if r := spec.GetReplicated(); r != nil && r.Replicas == nil {
		r.Replicas = proto.Uint64(1)
	}
	spec.Update = updateDefaults(spec.Update)
	spec.Rollback = updateDefaults(spec.Rollback)
	if spec.Endpoint == nil {
		spec.Endpoint = &musterv1.EndpointSpec{}
	}
	// The endpoint's mode stays open while there are no virtual addresses: what is
	// read can then be written back.
	for _, p := range spec.Endpoint.Ports {
		if p.Protocol == musterv1.PortConfig_PROTOCOL_UNSPECIFIED {
			p.Protocol = musterv1.PortConfig_TCP
		}
		if p.PublishMode == musterv1.PortConfig_PUBLISH_MODE_UNSPECIFIED {
			p.PublishMode = musterv1.PortConfig_INGRESS
		}
	}
	if spec.Task != nil {
		taskDefaults(spec.Task)
	}
	return spec
}

func updateDefaults(u *musterv1.UpdateConfig) *musterv1.UpdateConfig {
	if u == nil {
		u = &musterv1.UpdateConfig{Parallelism: 1}
	}
	if u.Delay == nil {
		u.Delay = durationpb.New(0)
	}
	if u.Monitor == nil {
		u.Monitor = durationpb.New(5 * time.Second)
	}
	if u.FailureAction == musterv1.UpdateConfig_FAILURE_ACTION_UNSPECIFIED {
		u.FailureAction = musterv1.UpdateConfig_PAUSE
	}
	if u.Order == musterv1.UpdateConfig_ORDER_UNSPECIFIED {
		u.Order = musterv1.UpdateConfig_STOP_FIRST
	}
	return u
}

func taskDefaults(t *musterv1.TaskSpec) {
	if t.Restart == nil {
		t.Restart = &musterv1.RestartPolicy{}
	}
	if t.Restart.Condition == musterv1.RestartPolicy_CONDITION_UNSPECIFIED {
		t.Restart.Condition = musterv1.RestartPolicy_ANY
	}
	if t.Restart.Delay == nil {
		t.Restart.Delay = durationpb.New(5 * time.Second)
	}
	if t.Restart.Window == nil {
		t.Restart.Window = durationpb.New(0)
	}
	c := t.GetContainer()
	if c == nil {
		return
	}
	if c.StopGracePeriod == nil {
		c.StopGracePeriod = durationpb.New(10 * time.Second)
	}
	if c.PullOptions == nil {
		c.PullOptions = &musterv1.PullOptions{}
	}
	if c.PullOptions.Policy == musterv1.PullOptions_POLICY_UNSPECIFIED {
		c.PullOptions.Policy = musterv1.PullOptions_ALWAYS
	}
}
