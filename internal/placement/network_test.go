package placement_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/placement"
)

// networked returns a node whose network plugin serves overlay networks.
func networked(id string, change func(d *musterv1.NodeDescription)) *placement.Node {
	d := &musterv1.NodeDescription{
		Executors: []*musterv1.ExecutorDescription{{
			Kinds: []string{"null"}, Health: musterv1.ExecutorDescription_HEALTHY, Capabilities: []string{"network.accepts"},
		}},
		NetworkDrivers: []*musterv1.NetworkDriverDescription{{
			Name: "overlay", Drivers: []string{"overlay"}, Health: musterv1.ExecutorDescription_HEALTHY,
		}},
	}
	if change != nil {
		change(d)
	}
	return placement.NewNode(id, &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: d}, nil)
}

// given returns what the allocator gives a network with a subnet.
func given(t interface{ Fatal(args ...any) }, subnet string) *recordv1.NetworkState {
	l, err := addresses.Divide([]addresses.Subnet{{Prefix: netip.MustParsePrefix(subnet)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l.State()
}

func joining(t *testing.T, ns *placement.Networks, ids ...string) *placement.Request {
	t.Helper()
	r, err := placement.NewRequest("web", &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var networks []*placement.Network
	for _, id := range ids {
		networks = append(networks, ns.Network(id))
	}
	r.Join(networks)
	return r
}

func TestNodesNeedAPluginForTheNetworksOfATask(t *testing.T) {
	overlay := &musterv1.NetworkSpec{Name: "frontend"}
	ready := given(t, "10.1.0.0/24")
	for _, c := range []struct {
		name  string
		spec  *musterv1.NetworkSpec
		state *recordv1.NetworkState
		node  func(d *musterv1.NodeDescription)
		want  string
	}{
		{"fits", overlay, ready, nil, ""},
		{"no executor for networks", overlay, ready, func(d *musterv1.NodeDescription) { d.Executors[0].Capabilities = nil },
			`executor for "null" cannot connect tasks to networks (muster plugin ls says what it lacks) on 1 node`},
		{"no plugin", overlay, ready, func(d *musterv1.NodeDescription) { d.NetworkDrivers = nil },
			`network frontend: no network plugin for driver "overlay" (install one in the worker's plugin directory) on 1 node`},
		{"other driver", &musterv1.NetworkSpec{Name: "frontend", Driver: &musterv1.Driver{Name: "cni"}}, &recordv1.NetworkState{}, nil,
			`network frontend: no network plugin for driver "cni" (install one in the worker's plugin directory) on 1 node`},
		{"sick plugin", overlay, ready, func(d *musterv1.NodeDescription) {
			d.NetworkDrivers[0].Health, d.NetworkDrivers[0].Message = musterv1.ExecutorDescription_UNHEALTHY, "no rights"
		},
			`network frontend: network plugin for driver "overlay" is not healthy: no rights on 1 node`},
		{"no IPv6", &musterv1.NetworkSpec{Name: "frontend", Ipv6Enabled: true}, ready, nil,
			`network frontend: network plugin for driver "overlay" lacks the capability "ipv6" on 1 node`},
		{"encrypted", &musterv1.NetworkSpec{Name: "frontend", Encrypted: true}, ready, func(d *musterv1.NodeDescription) {
			d.NetworkDrivers[0].Capabilities = []string{"encrypted"}
		}, ""},
		{"ingress", &musterv1.NetworkSpec{Name: "ingress", Ingress: true}, ready, nil,
			`network ingress: network plugin for driver "overlay" lacks the capability "ingress" on 1 node`},
		{"no such network", nil, nil, nil, `network net does not exist on 1 node`},
		{"no subnet yet", overlay, nil, nil, `network frontend is being set up and has no subnet yet on 1 node`},
		{"no subnet", overlay, &recordv1.NetworkState{Error: "pool exhausted"}, nil, `network frontend has no subnet: pool exhausted on 1 node`},
	} {
		ns := placement.NewNetworks()
		ns.Network("net").Set(c.spec, c.state)
		r := joining(t, ns, "net")
		u := placement.NewUsage()
		u.SetNetworks(ns)
		n := networked("n", c.node)
		refusals := r.Refusals([]placement.Candidate{{Node: n, Usage: u}})
		if fits := r.Check(n, u) == placement.FilterNone; fits != (c.want == "") || !fits && !strings.Contains(refusals.String(), c.want) {
			t.Errorf("%s: fits %t, %s; want %q", c.name, fits, refusals, c.want)
		}
	}
}

func TestAFullNetworkRefusesNodesWithoutAnAddress(t *testing.T) {
	ns := placement.NewNetworks()
	ns.Network("net").Set(&musterv1.NetworkSpec{Name: "frontend"}, given(t, "10.1.0.0/28")) // 11 blocks of one address
	r := joining(t, ns, "net")
	var nodes []placement.Candidate
	for i := range 3 {
		u := placement.NewUsage()
		u.SetNetworks(ns)
		nodes = append(nodes, placement.Candidate{Node: networked(fmt.Sprint(i), nil), Usage: u})
	}
	// Each node needs an address of its own, so 8 are left.
	if n := r.Spread(nodes, 20, func(placement.Candidate) {}); n != 8 {
		t.Errorf("%d tasks are placed, want 8", n)
	}
	want := "network frontend is full: all 11 addresses are in use or reserved for other nodes on 3 nodes"
	if got := r.Refusals(nodes).String(); !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	nodes[0].Remove(r.Hold())
	if n := r.Spread(nodes, 20, func(placement.Candidate) {}); n != 1 {
		t.Errorf("%d tasks are placed after one has ended, want 1", n)
	}
}

// A node's blocks are worth what they hold, and what tasks claim is what blocks they need
// beyond those: whatever comes in whatever order.
func TestAddressesAreNeverPromisedTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := given(t, "10.1.0.0/26") // 12 blocks of 4 addresses, of which the last has 3
		layout, err := addresses.ReadLayout(state)
		if err != nil {
			t.Fatal(err)
		}
		ns := placement.NewNetworks()
		r, err := placement.NewRequest("web", &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Join([]*placement.Network{ns.Network("net")})
		known := false
		holder := map[uint32]int{}
		var nodes []placement.Candidate
		var tasks, capacity, blocks [3]int
		for i := range tasks {
			u := placement.NewUsage()
			u.SetNetworks(ns)
			nodes = append(nodes, placement.Candidate{Node: networked(fmt.Sprint(i), nil), Usage: u})
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, 2).Draw(t, "node")
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				if r.Check(nodes[i].Node, nodes[i].Usage) == placement.FilterNone {
					nodes[i].Add(r.Hold())
					tasks[i]++
				}
			case 1:
				if tasks[i] > 0 {
					nodes[i].Remove(r.Hold())
					tasks[i]--
				}
			case 2:
				number := rapid.Uint32Range(0, 11).Draw(t, "block")
				c := int(layout.Capacity(number))
				if of, held := holder[number]; !held {
					nodes[i].AddBlock("net", number)
					holder[number] = i
					capacity[i] += c
					blocks[i]++
				} else if tasks[of]+1 <= capacity[of]-c || tasks[of] == 0 {
					nodes[of].RemoveBlock("net", number)
					delete(holder, number)
					capacity[of] -= c
					blocks[of]--
				}
			case 3:
				ns.Network("net").Set(&musterv1.NetworkSpec{Name: "net"}, state)
				known = true
			}
			if !known {
				if tasks != [3]int{} {
					t.Fatal("a task is placed on a network that is not known")
				}
				continue
			}
			free := 12 - len(holder)
			claimed := 0
			for k := range tasks {
				if missing := tasks[k] + 1 - capacity[k]; tasks[k] > 0 && missing > 0 {
					claimed += (missing + 2) / 3 // a block has at least 3
				}
			}
			for k := range nodes {
				more := 0
				if missing := tasks[k] + 2 - capacity[k]; missing > 0 {
					more = (missing + 2) / 3
				}
				if missing := tasks[k] + 1 - capacity[k]; tasks[k] > 0 && missing > 0 {
					more -= (missing + 2) / 3
				}
				want := more <= 0 || claimed+more <= free
				if got := r.Check(nodes[k].Node, nodes[k].Usage) == placement.FilterNone; got != want {
					t.Fatalf("node %d with %d tasks and %d addresses takes another: %t, want %t (%d blocks free, %d claimed)",
						k, tasks[k], capacity[k], got, want, free, claimed)
				}
			}
		}
	})
}
