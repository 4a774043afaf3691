package placement_test

import (
	"fmt"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

// TestExplanationsNameWhatIsMissing has nodes refuse a task, and wants to be told
// which resource, constraint, port or other condition each of them fails.
func TestExplanationsNameWhatIsMissing(t *testing.T) {
	t.Parallel()
	type change = func(*recordv1.NodeState, *recordv1.Node)
	node := func(change change, holds ...placement.Hold) placement.Candidate {
		c := placement.Candidate{Node: machine("n", change), Usage: placement.NewUsage()}
		for _, h := range holds {
			c.Add(h)
		}
		return c
	}
	state := func(s musterv1.NodeStatus_State) placement.Candidate {
		return node(func(r *recordv1.NodeState, _ *recordv1.Node) { r.State = s })
	}
	availability := func(a musterv1.NodeSpec_Availability) placement.Candidate {
		return node(func(_ *recordv1.NodeState, o *recordv1.Node) { o.Spec.Availability = a })
	}
	zone := func(zone string) placement.Candidate {
		return node(func(_ *recordv1.NodeState, o *recordv1.Node) { o.Spec.Labels["zone"] = zone })
	}
	platform := func(os, arch string) placement.Candidate {
		return node(func(r *recordv1.NodeState, _ *recordv1.Node) {
			r.Description.Platform = &musterv1.Platform{Os: os, Architecture: arch}
		})
	}
	executor := func(change func(*musterv1.ExecutorDescription)) placement.Candidate {
		return node(func(r *recordv1.NodeState, _ *recordv1.Node) { change(r.Description.Executors[0]) })
	}
	reserve := func(cpus, memory int64) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: cpus, MemoryBytes: memory}}}
	}
	place := func(p *musterv1.Placement) *musterv1.TaskSpec { return &musterv1.TaskSpec{Placement: p} }
	constrain := func(constraints ...string) *musterv1.TaskSpec {
		return place(&musterv1.Placement{Constraints: constraints})
	}
	host := func(number uint32, protocol musterv1.PortConfig_Protocol) *musterv1.PortConfig {
		return &musterv1.PortConfig{PublishedPort: number, TargetPort: 80, Protocol: protocol, PublishMode: musterv1.PortConfig_HOST}
	}
	cpu := func(nano int64) placement.Hold {
		return placement.Hold{Service: "x", Resources: placement.Resources{NanoCPUs: nano}}
	}
	memory := func(bytes int64) placement.Hold {
		return placement.Hold{Service: "x", Resources: placement.Resources{MemoryBytes: bytes}}
	}
	tcp, udp := host(8080, 0), host(53, musterv1.PortConfig_UDP)
	occupied := placement.Hold{Service: "x", Ports: []*musterv1.PortConfig{tcp}}
	// Two nodes of a machine, of which the first holds so much.
	beside := func(h placement.Hold) []placement.Candidate {
		nodes := sharing(3, nil)
		nodes[0].Add(h)
		return nodes
	}

	for name, tt := range map[string]struct {
		spec  *musterv1.TaskSpec
		ports []*musterv1.PortConfig
		nodes []placement.Candidate
		want  string
	}{
		"no nodes": {want: "there are no nodes"},
		"conditions of nodes": {
			nodes: []placement.Candidate{
				state(musterv1.NodeStatus_DOWN), state(musterv1.NodeStatus_DOWN), state(musterv1.NodeStatus_DISCONNECTED),
				availability(musterv1.NodeSpec_DRAIN),
			},
			want: "2 nodes down; 1 node disconnected; 1 node drained",
		},
		"rarer conditions of nodes": {
			nodes: []placement.Candidate{
				availability(musterv1.NodeSpec_PAUSE), state(musterv1.NodeStatus_UNKNOWN),
				node(func(_ *recordv1.NodeState, o *recordv1.Node) { o.Removed = true }),
			},
			want: "1 node not ready; 1 node paused; 1 node removed",
		},
		"CPU": {
			spec: reserve(2e9, 1<<30), nodes: []placement.Candidate{node(nil, cpu(3.5e9)), node(nil, cpu(2.75e9))},
			want: "insufficient CPU on 2 nodes: want 2, at most 1.25 free",
		},
		"memory": {
			spec: reserve(1e9, 8<<30), nodes: []placement.Candidate{node(nil, memory(6<<30)), node(nil, memory(7<<30)), node(nil, memory(8<<30))},
			want: "insufficient memory on 3 nodes: want 8 GiB, at most 2 GiB free",
		},
		"either resource, or both": {
			spec: reserve(4e9, 8<<30), nodes: []placement.Candidate{node(nil, cpu(4e9)), node(nil, memory(1)), node(nil, cpu(4e9), memory(8<<30))},
			want: "insufficient CPU on 2 nodes: want 4, none free; insufficient memory on 2 nodes: want 8589934592 bytes, at most 8589934591 free",
		},
		"more reserved than there is": {
			spec: reserve(1e9, 0), nodes: []placement.Candidate{node(nil, cpu(9e9))},
			want: "insufficient CPU on 1 node: want 1, none free",
		},
		"resources that other nodes of the machine hold": {
			spec: reserve(2e9, 0), nodes: beside(cpu(3e9)),
			want: "insufficient CPU on the machine of 2 nodes: want 2, at most 1 free; insufficient CPU on 1 node: want 2, at most 1 free",
		},
		"constraints": {
			spec: constrain("node.labels.zone == a", "engine.labels.storage!=hdd"), nodes: []placement.Candidate{zone("b"), zone("")},
			want: "constraint node.labels.zone==a not met by 2 nodes",
		},
		"several constraints": {
			spec:  constrain("node.labels.zone!=a", "node.labels.disk==ssd", "node.id==x", "node.hostname==y", "node.role==manager"),
			nodes: []placement.Candidate{zone("a"), zone("b")},
			want: "constraint node.labels.disk==ssd not met by 2 nodes; constraint node.id==x not met by 2 nodes; " +
				"constraint node.hostname==y not met by 2 nodes; 2 more constraints",
		},
		"host port": {
			ports: []*musterv1.PortConfig{tcp, udp}, nodes: []placement.Candidate{node(nil, occupied)},
			want: "host port 8080/tcp in use on 1 node",
		},
		"several host ports": {
			ports: []*musterv1.PortConfig{tcp, udp},
			nodes: []placement.Candidate{node(nil, occupied), node(nil, placement.Hold{Service: "x", Ports: []*musterv1.PortConfig{udp, tcp}})},
			want:  "host port 8080/tcp in use on 2 nodes; host port 53/udp in use on 1 node",
		},
		"host port that another node of the machine holds": {
			ports: []*musterv1.PortConfig{tcp}, nodes: beside(occupied),
			want: "host port 8080/tcp in use on the machine of 2 nodes; host port 8080/tcp in use on 1 node",
		},
		"platforms": {
			spec:  place(&musterv1.Placement{Platforms: []*musterv1.Platform{{Os: "linux", Architecture: "aarch64"}, {Os: "windows"}}}),
			nodes: []placement.Candidate{platform("linux", "x86_64"), platform("linux", "amd64"), platform("darwin", "arm64")},
			want: "platform is linux/amd64, not linux/arm64 or windows/*, on 2 nodes; " +
				"platform is darwin/arm64, not linux/arm64 or windows/*, on 1 node",
		},
		"executors": {
			nodes: []placement.Candidate{
				executor(func(e *musterv1.ExecutorDescription) { e.Health = musterv1.ExecutorDescription_UNHEALTHY }),
				executor(func(e *musterv1.ExecutorDescription) { e.Kinds = []string{"process"} }),
				executor(func(e *musterv1.ExecutorDescription) { e.Kinds = nil }),
			},
			want: `no executor for "container" on 2 nodes; executor for "container" is not healthy on 1 node`,
		},
		"fields": {
			spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "a", Hostname: "b", StopSignal: "TERM"}}},
			nodes: []placement.Candidate{
				executor(func(e *musterv1.ExecutorDescription) { e.Capabilities = []string{"container.image"} }),
				executor(func(e *musterv1.ExecutorDescription) {
					e.Capabilities = []string{"container.image", "container.hostname"}
				}),
			},
			want: `executor for "container" does not act on field stopSignal on 2 nodes; executor for "container" does not act on field hostname on 1 node`,
		},
		"replicas": {
			spec: place(&musterv1.Placement{MaxReplicas: 2}), nodes: []placement.Candidate{node(nil, placement.Hold{Service: "web"}, placement.Hold{Service: "web"})},
			want: "max replicas per node (2) reached on 1 node",
		},
		"several filters, and a node that fits": {
			spec:  &musterv1.TaskSpec{Resources: reserve(4e9, 0).Resources, Placement: constrain("node.labels.zone==a").Placement},
			ports: []*musterv1.PortConfig{tcp},
			nodes: []placement.Candidate{zone("b"), zone("c"), node(nil, occupied), node(nil), node(nil, cpu(1e9)), node(nil, cpu(1e9)), node(nil, cpu(2e9))},
			want: "insufficient CPU on 3 nodes: want 4, at most 3 free; constraint node.labels.zone==a not met by 2 nodes; " +
				"host port 8080/tcp in use on 1 node",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := placement.NewRequest("web", tt.spec, &musterv1.EndpointSpec{Ports: tt.ports})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := r.Refusals(tt.nodes).String(), "no suitable node ("+tt.want+")"; got != want {
				t.Errorf("explanation\n%q, want\n%q", got, want)
			}
		})
	}
}

// BenchmarkRefusals explains why none of 5,000 nodes takes a task, as the scheduler
// does for each service that found no room.
func BenchmarkRefusals(b *testing.B) {
	r, err := placement.NewRequest("web", &musterv1.TaskSpec{
		Placement: &musterv1.Placement{Constraints: []string{"node.labels.zone==b", "node.labels.disk==ssd"}},
		Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 2e9, MemoryBytes: 1 << 30}},
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	candidates := make([]placement.Candidate, 5000)
	for i := range candidates {
		candidates[i] = placement.Candidate{Node: machine(fmt.Sprint(i), nil), Usage: placement.NewUsage()}
		if i%2 == 0 {
			candidates[i].Add(placement.Hold{Service: "x", Resources: placement.Resources{NanoCPUs: 3e9, MemoryBytes: 8 << 30}})
		}
	}
	for b.Loop() {
		if r.Spread(candidates, 20, func(placement.Candidate) {}) != 0 || r.Refusals(candidates).String() == "" {
			b.Fatal("a task was placed")
		}
	}
}
