package defaults_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

// open is a spec that leaves all open.
func open() *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{
		Endpoint: &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80}}},
		Task:     &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "i"}}},
	}
}

// full is a spec that says all, zeros included.
func full() *musterv1.ServiceSpec {
	update := &musterv1.UpdateConfig{
		Delay: durationpb.New(0), Monitor: durationpb.New(0),
		FailureAction: musterv1.UpdateConfig_CONTINUE, Order: musterv1.UpdateConfig_START_FIRST,
	}
	return &musterv1.ServiceSpec{
		Mode:   &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(0)}},
		Update: update, Rollback: proto.CloneOf(update),
		Endpoint: &musterv1.EndpointSpec{
			Mode: musterv1.EndpointSpec_DNSRR, DrainDelay: durationpb.New(0),
			Ports: []*musterv1.PortConfig{{TargetPort: 80, Protocol: musterv1.PortConfig_UDP, PublishMode: musterv1.PortConfig_HOST}},
		},
		Task: &musterv1.TaskSpec{
			Restart: &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE, Delay: durationpb.New(0), Window: durationpb.New(0)},
			Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
				StopGracePeriod: durationpb.New(0), PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER},
			}},
		},
	}
}

func TestServiceFillsInWhatIsOpen(t *testing.T) {
	given := open()
	got := defaults.Service(given)
	if !proto.Equal(given, open()) {
		t.Errorf("Service changed its argument: %v", given)
	}
	update := &musterv1.UpdateConfig{
		Parallelism: 1, Delay: durationpb.New(0), Monitor: durationpb.New(5 * time.Second),
		FailureAction: musterv1.UpdateConfig_PAUSE, Order: musterv1.UpdateConfig_STOP_FIRST,
	}
	want := &musterv1.ServiceSpec{
		Mode:   &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(1)}},
		Update: update, Rollback: update,
		Endpoint: &musterv1.EndpointSpec{
			Mode: musterv1.EndpointSpec_VIP, DrainDelay: durationpb.New(2 * time.Second),
			Ports: []*musterv1.PortConfig{{
				TargetPort: 80, Protocol: musterv1.PortConfig_TCP, PublishMode: musterv1.PortConfig_INGRESS, ExternalTraffic: musterv1.PortConfig_CLUSTER,
			}},
		},
		Task: &musterv1.TaskSpec{
			Restart: &musterv1.RestartPolicy{
				Condition: musterv1.RestartPolicy_ANY, Delay: durationpb.New(5 * time.Second), Window: durationpb.New(0),
			},
			Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
				Image: "i", StopGracePeriod: durationpb.New(10 * time.Second), PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_ALWAYS},
			}},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("Service = %v, want %v", got, want)
	}
	if again := defaults.Service(got); !proto.Equal(again, got) {
		t.Errorf("Service of what is filled in = %v, want no change", again)
	}
}

func TestServiceKeepsWhatIsSaid(t *testing.T) {
	if got := defaults.Service(full()); !proto.Equal(got, full()) {
		t.Errorf("Service = %v, want no change of %v", got, full())
	}
	// An update config that is there leaves its parallelism open to 0, which is all.
	if got := defaults.Service(&musterv1.ServiceSpec{Update: &musterv1.UpdateConfig{}}).GetUpdate().GetParallelism(); got != 0 {
		t.Errorf("parallelism = %d, want 0", got)
	}
	global := &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}}
	if got := defaults.Service(global); got.GetGlobal() == nil || defaults.Replicas(global) != 0 {
		t.Errorf("a global service = %v with %d replicas, want it global with none", got, defaults.Replicas(global))
	}
}

// What acts on a stored spec, also one of an earlier version, sees the same values as
// a user who reads it with its defaults.
func TestReadersSeeWhatUsersSee(t *testing.T) {
	for name, spec := range map[string]*musterv1.ServiceSpec{"open": open(), "full": full(), "nothing": {}} {
		shown := defaults.Service(spec)
		for _, same := range []struct {
			field       string
			reads, sees any
		}{
			{"replicas", defaults.Replicas(spec), shown.GetReplicated().GetReplicas()},
			{"parallelism", defaults.Parallelism(spec.GetUpdate()), shown.GetUpdate().GetParallelism()},
			{"monitor", defaults.Monitor(spec.GetUpdate()), shown.GetUpdate().GetMonitor().AsDuration()},
			{"failure action", defaults.FailureAction(spec.GetUpdate()), shown.GetUpdate().GetFailureAction()},
			{"endpoint mode", defaults.EndpointMode(spec.GetEndpoint()), shown.GetEndpoint().GetMode()},
			{"drain delay", defaults.DrainDelay(spec.GetEndpoint()), shown.GetEndpoint().GetDrainDelay().AsDuration()},
			{"order", defaults.Order(spec.GetUpdate()), shown.GetUpdate().GetOrder()},
		} {
			if same.reads != same.sees {
				t.Errorf("%s: %s = %v, and users see %v", name, same.field, same.reads, same.sees)
			}
		}
		if shown.GetTask() == nil {
			continue
		}
		if got, want := defaults.RestartDelay(spec.GetTask().GetRestart()), shown.GetTask().GetRestart().GetDelay().AsDuration(); got != want {
			t.Errorf("%s: restart delay = %v, and users see %v", name, got, want)
		}
		if got, want := defaults.Runtime(spec.GetTask()).GetContainer(), shown.GetTask().GetContainer(); !proto.Equal(got, want) {
			t.Errorf("%s: an executor gets %v, and users see %v", name, got, want)
		}
	}
}

func TestRuntimeCopiesOnlyWhatIsOpen(t *testing.T) {
	generic := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process"}}}
	for name, spec := range map[string]*musterv1.TaskSpec{"generic": generic, "full": full().GetTask()} {
		if defaults.Runtime(spec) != spec {
			t.Errorf("%s: Runtime copies a spec that leaves nothing open", name)
		}
	}
	task := open().GetTask()
	if defaults.Runtime(task); !proto.Equal(task, open().GetTask()) {
		t.Errorf("Runtime changed its argument: %v", task)
	}
}

func TestRuntimeFillsInContainersOfGroup(t *testing.T) {
	spec := &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{}},
		Group: []*musterv1.GroupContainer{
			{Role: musterv1.GroupContainer_SIDECAR, Runtime: &musterv1.GroupContainer_Container{Container: &musterv1.ContainerSpec{}}},
			{Role: musterv1.GroupContainer_POST_STOP, Runtime: &musterv1.GroupContainer_Generic{Generic: &musterv1.GenericRuntime{Kind: "process"}}},
		},
	}
	got := defaults.Runtime(spec)
	for _, c := range []*musterv1.ContainerSpec{got.GetContainer(), got.Group[0].GetContainer()} {
		if c.StopGracePeriod.AsDuration() != defaults.StopGracePeriod || c.PullOptions.GetPolicy() != musterv1.PullOptions_ALWAYS {
			t.Errorf("an executor gets %v", c)
		}
	}
	if got.Group[0].Timeout != nil || got.Group[1].Timeout.AsDuration() != defaults.PostStopTimeout {
		t.Errorf("timeouts are %v and %v", got.Group[0].Timeout, got.Group[1].Timeout)
	}
	if defaults.Runtime(got) != got || spec.Group[0].GetContainer().StopGracePeriod != nil {
		t.Error("Runtime copies what is full, or changes its argument")
	}
}

func TestTaskHistoryLimit(t *testing.T) {
	for want, spec := range map[int64]*musterv1.ClusterSpec{
		5: nil,
		0: {Orchestration: &musterv1.OrchestrationConfig{TaskHistoryRetentionLimit: proto.Int64(0)}},
		7: {Orchestration: &musterv1.OrchestrationConfig{TaskHistoryRetentionLimit: proto.Int64(7)}},
	} {
		if got := defaults.TaskHistoryLimit(spec); got != want {
			t.Errorf("TaskHistoryLimit(%v) = %d, want %d", spec, got, want)
		}
	}
}

// A cluster has addresses of both families, also if its operator has set those of one.
func TestAddressPools(t *testing.T) {
	pool := func(base string, size uint32) *musterv1.AddressPool {
		return &musterv1.AddressPool{Base: base, Size: size}
	}
	v4, v6 := pool("10.64.0.0/10", 16), pool("fd6d:7573:7465::/48", 64)
	own4, own6 := pool("172.20.0.0/14", 24), pool("fd00::/40", 64)
	for name, c := range map[string]struct{ set, want []*musterv1.AddressPool }{
		"none": {nil, []*musterv1.AddressPool{v4, v6}},
		"IPv4": {[]*musterv1.AddressPool{own4}, []*musterv1.AddressPool{own4, v6}},
		"IPv6": {[]*musterv1.AddressPool{own6}, []*musterv1.AddressPool{own6, v4}},
		"both": {[]*musterv1.AddressPool{own6, own4}, []*musterv1.AddressPool{own6, own4}},
	} {
		got := defaults.AddressPools(&musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{AddressPools: c.set}})
		if !slices.EqualFunc(got, c.want, func(a, b *musterv1.AddressPool) bool { return proto.Equal(a, b) }) {
			t.Errorf("%s: pools are %v, want %v", name, got, c.want)
		}
	}
	if got := len(defaults.AddressPools(nil)); got != 2 {
		t.Errorf("a cluster without a spec has %d pools, want 2", got)
	}
}

func TestReservedPorts(t *testing.T) {
	if got := defaults.ReservedPorts(nil); !slices.Contains(got, "22/tcp") {
		t.Errorf("a cluster without a spec reserves %q, want 22/tcp among them", got)
	}
	for name, want := range map[string][]string{"none": nil, "own": {"53"}} {
		spec := &musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{ReservedPorts: &musterv1.ReservedPorts{Ports: want}}}
		if got := defaults.ReservedPorts(spec); !slices.Equal(got, want) {
			t.Errorf("%s: reserved ports are %q, want %q", name, got, want)
		}
	}
}

func TestMaxNetworks(t *testing.T) {
	for want, spec := range map[uint32]*musterv1.ClusterSpec{
		1000: {Network: &musterv1.NetworkConfig{}},
		0:    {Network: &musterv1.NetworkConfig{MaxNetworks: proto.Uint32(0)}},
	} {
		if got := defaults.MaxNetworks(spec); got != want {
			t.Errorf("MaxNetworks(%v) = %d, want %d", spec, got, want)
		}
	}
}
