package placement_test

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

// machine returns a node that takes containers, with 4 cores and 8 GiB.
func machine(id string, change func(*recordv1.NodeState, *recordv1.Node)) *placement.Node {
	reported := &recordv1.NodeState{
		State: musterv1.NodeStatus_READY, Address: "10.0.0.7:4711",
		Description: &musterv1.NodeDescription{
			Hostname: "host-" + id, Platform: &musterv1.Platform{Os: "linux", Architecture: "amd64"},
			Resources: &musterv1.Resources{NanoCpus: 4e9, MemoryBytes: 8 << 30},
			Labels:    map[string]string{"storage": "ssd"},
			Executors: []*musterv1.ExecutorDescription{{
				Name: "docker", Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"container"},
			}},
		},
	}
	operator := &recordv1.Node{Spec: &musterv1.NodeSpec{Labels: map[string]string{"zone": "a"}}}
	if change != nil {
		change(reported, operator)
	}
	return placement.NewNode(id, reported, operator)
}

func TestConstraints(t *testing.T) {
	n := machine("n1", nil)
	tests := map[string]struct{ match, bad bool }{
		"node.id==n1":                    {match: true},
		"node.id == N1":                  {match: true},
		"node.id!=n1":                    {},
		"NODE.HOSTNAME==host-n1":         {match: true},
		"node.hostname==host":            {},
		"node.role==worker":              {match: true},
		"node.role==manager":             {},
		"node.platform.os==Linux":        {match: true},
		"node.platform.arch==x86_64":     {match: true},
		"node.platform.arch==arm64":      {},
		"node.labels.zone==a":            {match: true},
		"node.labels.zone!=b":            {match: true},
		"node.labels.Zone==a":            {},
		"node.labels.missing!=x":         {match: true},
		"node.labels.missing==x":         {},
		"engine.labels.storage==ssd":     {match: true},
		"node.ip==10.0.0.7":              {match: true},
		"node.ip==10.0.0.0/24":           {match: true},
		"node.ip!=10.1.0.0/24":           {match: true},
		"node.ip==10.0.0":                {bad: true},
		"node.labels.==x":                {bad: true},
		"node.labels.a b==x":             {bad: true},
		"zone==a":                        {bad: true},
		"node.id=n1":                     {bad: true},
		"node.id==":                      {bad: true},
		"node.labels.zone==a;rm -rf /\n": {bad: true},
		"":                               {bad: true},
	}
	for expression, want := range tests {
		cs, err := placement.ParseConstraints([]string{expression})
		if (err != nil) != want.bad {
			t.Errorf("ParseConstraints(%q) error = %v, want one: %v", expression, err, want.bad)
		}
		if err == nil && cs.Match(n) != want.match {
			t.Errorf("%q matches: %v, want %v", expression, !want.match, want.match)
		}
	}
}

func TestCheck(t *testing.T) {
	type change = func(*recordv1.NodeState, *recordv1.Node)
	port := []*musterv1.PortConfig{{PublishedPort: 80, TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
	chosen := []*musterv1.PortConfig{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
	udp := []*musterv1.PortConfig{{PublishedPort: 80, Protocol: musterv1.PortConfig_UDP}}
	state := func(s musterv1.NodeStatus_State) change {
		return func(r *recordv1.NodeState, _ *recordv1.Node) { r.State = s }
	}
	availability := func(a musterv1.NodeSpec_Availability) change {
		return func(_ *recordv1.NodeState, o *recordv1.Node) { o.Spec.Availability = a }
	}
	reserve := func(cpus, memory int64) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: cpus, MemoryBytes: memory}}}
	}
	place := func(p *musterv1.Placement) *musterv1.TaskSpec { return &musterv1.TaskSpec{Placement: p} }
	tests := map[string]struct {
		node     change
		spec     *musterv1.TaskSpec
		ports    []*musterv1.PortConfig
		existing []placement.Hold
		want     placement.Filter
	}{
		"fits":                         {want: placement.FilterNone},
		"down":                         {node: state(musterv1.NodeStatus_DOWN), want: placement.FilterReady},
		"disconnected":                 {node: state(musterv1.NodeStatus_DISCONNECTED), want: placement.FilterReady},
		"drained":                      {node: availability(musterv1.NodeSpec_DRAIN), want: placement.FilterReady},
		"paused":                       {node: availability(musterv1.NodeSpec_PAUSE), want: placement.FilterReady},
		"removed":                      {node: func(_ *recordv1.NodeState, o *recordv1.Node) { o.Removed = true }, want: placement.FilterReady},
		"cpu exactly":                  {spec: reserve(4e9, 0)},
		"cpu":                          {spec: reserve(1e9, 0), existing: []placement.Hold{{Service: "x", Resources: placement.Resources{NanoCPUs: 3e9 + 1}}}, want: placement.FilterResources},
		"memory":                       {spec: reserve(0, 9<<30), want: placement.FilterResources},
		"nothing asked of a full node": {existing: []placement.Hold{{Service: "x", Resources: placement.Resources{NanoCPUs: 9e9}}}},
		"unknown kind": {
			spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "wasm"}}},
			want: placement.FilterExecutor,
		},
		"sick executor": {
			node: func(r *recordv1.NodeState, _ *recordv1.Node) {
				r.Description.Executors[0].Health = musterv1.ExecutorDescription_UNHEALTHY
			},
			want: placement.FilterExecutor,
		},
		"constraint": {spec: place(&musterv1.Placement{Constraints: []string{"node.labels.zone==b"}}), want: placement.FilterConstraints},
		"platform": {
			spec: place(&musterv1.Placement{Platforms: []*musterv1.Platform{{Os: "windows"}, {Architecture: "arm64"}}}),
			want: placement.FilterPlatform,
		},
		"platform by alias": {spec: place(&musterv1.Placement{Platforms: []*musterv1.Platform{{Architecture: "x86_64"}}})},
		"port":              {ports: port, existing: []placement.Hold{{Service: "x", Ports: port}}, want: placement.FilterPorts},
		"port of no number": {ports: chosen, existing: []placement.Hold{{Service: "x", Ports: chosen}}},
		"other protocol":    {ports: port, existing: []placement.Hold{{Service: "x", Ports: udp}}},
		"replicas": {
			spec:     place(&musterv1.Placement{MaxReplicas: 1}),
			existing: []placement.Hold{{Service: "web"}},
			want:     placement.FilterReplicas,
		},
		"replicas of which one leaves": {
			spec:     place(&musterv1.Placement{MaxReplicas: 1}),
			existing: []placement.Hold{{Service: "web", Leaving: true}},
		},
		"port of a task that leaves": {
			ports: port, existing: []placement.Hold{{Service: "web", Ports: port, Leaving: true}}, want: placement.FilterPorts,
		},
		"cpu of a task that leaves": {
			spec: reserve(2e9, 0), existing: []placement.Hold{{Service: "web", Resources: placement.Resources{NanoCPUs: 3e9}, Leaving: true}}, want: placement.FilterResources,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := placement.NewRequest("web", tt.spec, &musterv1.EndpointSpec{Ports: tt.ports})
			if err != nil {
				t.Fatal(err)
			}
			u := placement.NewUsage()
			for _, h := range tt.existing {
				u.Add(h)
			}
			if got := r.Check(machine("n1", tt.node), u); got != tt.want {
				t.Errorf("Check = %q, want %q", got, tt.want)
			}
		})
	}
}

// TestAssignmentHoldsPorts holds that a task is told of all ports that it
// publishes on its node, and of no others.
func TestAssignmentHoldsPorts(t *testing.T) {
	host := []*musterv1.PortConfig{
		{PublishedPort: 80, TargetPort: 8080, PublishMode: musterv1.PortConfig_HOST},
		{TargetPort: 9090, PublishMode: musterv1.PortConfig_HOST},
	}
	all := append([]*musterv1.PortConfig{{PublishedPort: 443, TargetPort: 8443, PublishMode: musterv1.PortConfig_INGRESS}}, host...)
	r, err := placement.NewRequest("web", &musterv1.TaskSpec{}, &musterv1.EndpointSpec{Ports: all})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(host, r.Assignment(1, 0).Ports, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestUsageCountsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		holds := rapid.SliceOf(rapid.Custom(func(t *rapid.T) placement.Hold {
			h := placement.Hold{Service: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service"), Resources: placement.Resources{NanoCPUs: rapid.Int64Range(0, 10).Draw(t, "cpu")}, Leaving: rapid.Bool().Draw(t, "leaving")}
			if rapid.Bool().Draw(t, "port") {
				h.Ports = []*musterv1.PortConfig{{PublishedPort: uint32(rapid.IntRange(1, 3).Draw(t, "number"))}}
			}
			return h
		})).Draw(t, "holds")
		u := placement.NewUsage()
		for _, h := range holds {
			u.Add(h)
		}
		for _, h := range holds {
			u.Remove(h)
		}
		if diff := cmp.Diff(placement.NewUsage(), u, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
			t.Fatalf("after all were removed (-want +got):\n%s", diff)
		}
	})
}

// TestSpread checks what spreading promises, on random worlds: no node is
// filled beyond what fits, none with room is left behind others, and no task
// waits while a node has room.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(0, 60).Draw(t, "tasks")
		most := uint64(rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "max replicas"))
		r, err := placement.NewRequest("web", &musterv1.TaskSpec{
			Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 1e9}},
			Placement: &musterv1.Placement{MaxReplicas: most},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var candidates []placement.Candidate
		for i := range rapid.IntRange(0, 8).Draw(t, "nodes") {
			u := placement.NewUsage()
			for range rapid.IntRange(0, 3).Draw(t, "strangers") {
				u.Add(placement.Hold{Service: "other", Resources: placement.Resources{NanoCPUs: 1e9}})
			}
			cores := int64(rapid.IntRange(0, 12).Draw(t, "cores"))
			candidates = append(candidates, placement.Candidate{
				Node:  machine(fmt.Sprint(i), func(s *recordv1.NodeState, _ *recordv1.Node) { s.Description.Resources.NanoCpus = cores * 1e9 }),
				Usage: u,
				Avoid: rapid.Bool().Draw(t, "avoid"),
			})
		}
		placed := r.Spread(candidates, count, func(placement.Candidate) {})
		sum := 0
		for _, c := range candidates {
			sum += c.Service("web")
			if c.Service("web") > 0 && c.NanoCPUs > c.Description.Resources.NanoCpus {
				t.Fatalf("node %s holds %d of %d nanocpus", c.ID, c.NanoCPUs, c.Description.Resources.NanoCpus)
			}
			room := r.Check(c.Node, c.Usage) == placement.FilterNone
			if room && placed < count {
				t.Fatalf("node %s has room while tasks wait", c.ID)
			}
			for _, other := range candidates {
				if room && other.Avoid && !c.Avoid && other.Service("web") > 0 {
					t.Fatalf("node %s, which should be avoided, holds tasks while node %s has room", other.ID, c.ID)
				}
				if room && other.Avoid == c.Avoid && other.Service("web") > c.Service("web")+1 {
					t.Fatalf("node %s holds %d tasks, node %s with room only %d", other.ID, other.Service("web"), c.ID, c.Service("web"))
				}
			}
		}
		if sum != placed || placed > count {
			t.Fatalf("placed %d of %d, counted %d", placed, count, sum)
		}
	})
}

func FuzzParseConstraints(f *testing.F) {
	f.Add("node.labels.zone==a")
	f.Add("node.ip!=10.0.0.0/8")
	n := machine("n1", nil)
	f.Fuzz(func(t *testing.T, expression string) {
		cs, err := placement.ParseConstraints([]string{expression})
		if err == nil {
			cs.Match(n)
		}
	})
}

func BenchmarkSpread(b *testing.B) {
	r, err := placement.NewRequest("web", &musterv1.TaskSpec{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		candidates := make([]placement.Candidate, 1000)
		for i := range candidates {
			candidates[i] = placement.Candidate{Node: machine(fmt.Sprint(i), nil), Usage: placement.NewUsage()}
		}
		r.Spread(candidates, 10000, func(placement.Candidate) {})
	}
}
