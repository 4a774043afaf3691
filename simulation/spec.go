package simulation

import (
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
)

// revisionLabel tells which change of a service its spec is.
const revisionLabel = "revision"

// Zones are values of the label that constraints ask for.
var zones = []string{"a", "b"}

// steadyScripts are what tasks do that run until they are told to stop.
var steadyScripts = []map[string]any{
	nil, nil, nil,
	{"prepareDelay": "1500ms"},
	{"startDelay": "800ms", "failStart": "busy", "failTimes": 2, "temporary": true},
	{"ignoreShutdown": true, "stopGracePeriod": "3s"},
}

// flakyScripts are what tasks do that never come to rest.
var flakyScripts = []map[string]any{
	{"runFor": "7s", "exitCode": 1},
	{"runFor": "20s"},
	{"runFor": "12s", "unhealthy": true},
	{"failPrepare": "no such thing", "blame": "spec"},
	{"failStart": "broken"},
	{"hangAt": "prepare"},
	{"runFor": "2s", "exitCode": 3},
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// one says yes once in n times.
func one(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1)).Round(time.Millisecond)
}

// newSpec draws a service.
func newSpec(r *rand.Rand, name string, size Size) *musterv1.ServiceSpec {
	s := &musterv1.ServiceSpec{Name: name}
	if one(r, 6) {
		s.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
	} else {
		s.Mode = replicated(r.IntN(size.Replicas + 1))
	}
	change(r, s)
	return s
}

func replicated(n int) *musterv1.ServiceSpec_Replicated {
	return &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(uint64(n))}}
}

// change draws all of a service again except its name, mode and size.
func change(r *rand.Rand, s *musterv1.ServiceSpec) {
	scripts := steadyScripts
	if one(r, 4) {
		scripts = flakyScripts
	}
	s.Task = &musterv1.TaskSpec{Runtime: runtime(pick(r, scripts)), Restart: newRestart(r), ForceUpdate: uint64(r.IntN(3))}
	if one(r, 3) {
		s.Task.Resources = &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{
			NanoCpus: int64(r.IntN(20)) * 1e8, MemoryBytes: int64(r.IntN(8)) << 27,
		}}
	}
	if one(r, 4) {
		s.Task.Placement = &musterv1.Placement{}
		if !one(r, 3) {
			s.Task.Placement.Constraints = []string{pick(r, []string{"node.labels.zone==a", "node.labels.zone==b", "node.labels.zone!=a", "node.hostname!=node-001"})}
		}
		if one(r, 2) {
			s.Task.Placement.MaxReplicas = uint64(1 + r.IntN(3))
		}
	}
	s.Update = &musterv1.UpdateConfig{
		Order: pick(r, []musterv1.UpdateConfig_Order{musterv1.UpdateConfig_STOP_FIRST, musterv1.UpdateConfig_STOP_FIRST, musterv1.UpdateConfig_START_FIRST}),
	}
	s.Endpoint = nil
	if one(r, 5) {
		s.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{
			Protocol: musterv1.PortConfig_TCP, TargetPort: 80, PublishedPort: uint32(8000 + r.IntN(4)), PublishMode: musterv1.PortConfig_HOST,
		}}}
	}
}

func newRestart(r *rand.Rand) *musterv1.RestartPolicy {
	p := &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ANY, Delay: durationpb.New(between(r, 100*time.Millisecond, 4*time.Second))}
	if one(r, 4) {
		p.Condition = pick(r, []musterv1.RestartPolicy_Condition{musterv1.RestartPolicy_NONE, musterv1.RestartPolicy_ON_FAILURE})
	}
	if one(r, 4) {
		p.MaxAttempts = uint64(1 + r.IntN(3))
		p.Window = durationpb.New(between(r, 5*time.Second, 30*time.Second))
	}
	return p
}

// runtime is a null task with a script.
func runtime(script map[string]any) *musterv1.TaskSpec_Generic {
	payload, err := structpb.NewStruct(script)
	if err != nil {
		panic(fmt.Sprintf("script %v: %v", script, err))
	}
	return &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: null.Kind, Payload: payload}}
}

// steady says whether a service comes to rest by itself, whatever has happened to
// its tasks.
func steady(s *musterv1.ServiceSpec) bool {
	for _, script := range flakyScripts {
		if proto.Equal(runtime(script).Generic, s.GetTask().GetGeneric()) {
			return false
		}
	}
	p := s.GetTask().GetRestart()
	return p.GetCondition() == musterv1.RestartPolicy_ANY && p.GetMaxAttempts() == 0
}

// heal changes a service so that it comes to rest.
func heal(s *musterv1.ServiceSpec) {
	s.Task.Runtime = runtime(nil)
	s.Task.Restart.Condition, s.Task.Restart.MaxAttempts = musterv1.RestartPolicy_ANY, 0
	s.Task.ForceUpdate += 100
}
