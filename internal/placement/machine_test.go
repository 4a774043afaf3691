package placement_test

import (
	"fmt"
	"slices"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

// sharing returns nodes of one machine with 4 cores, each with its usage there.
func sharing(nodes int, change func(*recordv1.NodeState, *recordv1.Node)) []placement.Candidate {
	shared := placement.NewMachine()
	var candidates []placement.Candidate
	for i := range nodes {
		n := machine(fmt.Sprint("n", i), func(r *recordv1.NodeState, o *recordv1.Node) {
			r.Description.Machine = &musterv1.Machine{Id: "m", Shared: &musterv1.Resources{NanoCpus: 4e9, MemoryBytes: 8 << 30}}
			if change != nil {
				change(r, o)
			}
		})
		u := placement.NewUsage()
		if n.MachineID() != "" {
			u.SetMachine(shared)
		}
		candidates = append(candidates, placement.Candidate{Node: n, Usage: u})
	}
	return candidates
}

func reserving(t *testing.T, cores int64, ports ...uint32) *placement.Request {
	t.Helper()
	endpoint := &musterv1.EndpointSpec{}
	for _, p := range ports {
		endpoint.Ports = append(endpoint.Ports, &musterv1.PortConfig{PublishedPort: p, TargetPort: 80, PublishMode: musterv1.PortConfig_HOST})
	}
	r, err := placement.NewRequest("web", &musterv1.TaskSpec{
		Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: cores * 1e9}},
	}, endpoint)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNodesOfOneMachineShareResources: together their tasks reserve at most what the
// machine has, however they are placed.
func TestNodesOfOneMachineShareResources(t *testing.T) {
	r := reserving(t, 1)
	for name, place := range map[string]func([]placement.Candidate) int{
		"spread": func(c []placement.Candidate) int {
			placed := r.Spread(c, 12, func(placement.Candidate) {})
			if refusals := r.Refusals(c); refusals.Nodes(placement.FilterResources) != len(c) {
				t.Errorf("%v, want all nodes to refuse for their resources", refusals)
			}
			return placed
		},
		"fill": func(c []placement.Candidate) int { return r.Fill(c, 12, 12, func(placement.Candidate) {}) },
	} {
		if placed := place(sharing(3, nil)); placed != 4 {
			t.Errorf("%s: %d tasks of a core each on 3 nodes of a machine with 4 cores, want 4", name, placed)
		}
	}
}

// TestNodesOfOneMachineSharePorts: a host port is taken on all of them, until the task
// that holds it is gone.
func TestNodesOfOneMachineSharePorts(t *testing.T) {
	r := reserving(t, 0, 8080)
	nodes := sharing(3, nil)
	var chosen []placement.Candidate
	placed := r.Spread(nodes, 3, func(c placement.Candidate) { chosen = append(chosen, c) })
	if refusals := r.Refusals(nodes); placed != 1 || refusals.Nodes(placement.FilterPorts) != 3 {
		t.Fatalf("%d placed, %v; want 1, and all nodes to refuse for the port", placed, refusals)
	}
	if other := reserving(t, 0, 8081); other.Check(nodes[2].Node, nodes[2].Usage) != placement.FilterNone {
		t.Error("another port is refused")
	}
	chosen[0].Remove(r.Hold())
	for _, n := range nodes {
		if f := r.Check(n.Node, n.Usage); f != placement.FilterNone {
			t.Errorf("node %s refuses by %q once the task is gone", n.ID, f)
		}
	}
}

// TestOwnShareOfMachine: what a worker was given for itself is its own limit, and
// the others have what it leaves.
func TestOwnShareOfMachine(t *testing.T) {
	nodes := sharing(2, nil)
	nodes[0].Description.Resources.NanoCpus, nodes[0].Description.Machine.Shared.NanoCpus = 3e9, 0
	three, two := reserving(t, 3), reserving(t, 2)
	nodes[0].Add(three.Hold())
	if f := two.Check(nodes[1].Node, nodes[1].Usage); f != placement.FilterResources {
		t.Errorf("2 cores beside the 3 that the other node holds of 4: refused by %q, want resources", f)
	}
	nodes[0].Remove(three.Hold())
	nodes[1].Add(two.Hold())
	if f := three.Check(nodes[0].Node, nodes[0].Usage); f != placement.FilterNone {
		t.Errorf("a worker's own 3 cores are refused by %q", f)
	}
}

// TestMachineOfNodeThatLeaves: a node that is down or removed holds nothing of the
// machine, and one that moves takes with it what it holds.
func TestMachineOfNodeThatLeaves(t *testing.T) {
	down := sharing(1, func(r *recordv1.NodeState, _ *recordv1.Node) { r.State = musterv1.NodeStatus_DOWN })
	removed := sharing(1, func(_ *recordv1.NodeState, o *recordv1.Node) { o.Removed = true })
	for _, c := range slices.Concat(down, removed) {
		if id := c.MachineID(); id != "" {
			t.Errorf("node that is %v, removed %v, shares machine %q", c.State, c.Removed, id)
		}
	}
	r := reserving(t, 4, 8080)
	nodes := sharing(2, nil)
	nodes[0].Add(r.Hold())
	nodes[0].SetMachine(placement.NewMachine())
	if f := r.Check(nodes[1].Node, nodes[1].Usage); f != placement.FilterNone {
		t.Errorf("refused by %q after the other node moved to another machine", f)
	}
	if f := r.Check(nodes[0].Node, nodes[0].Usage); f != placement.FilterResources {
		t.Errorf("node that moved refuses by %q, want resources", f)
	}
}

// A worker at another address that names the machine takes nothing of it.
func TestMachineIsSharedAtOneAddressOnly(t *testing.T) {
	t.Parallel()
	id := func(address string) string {
		return machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) {
			r.Address = address
			r.Description.Machine = &musterv1.Machine{Id: "m"}
		}).MachineID()
	}
	here, beside, elsewhere := id("10.0.0.1"), id("10.0.0.1"), id("10.0.0.2")
	if here != beside {
		t.Error("two nodes of one machine do not share it")
	}
	if here == elsewhere {
		t.Error("a node at another address shares a machine that it names")
	}
}
