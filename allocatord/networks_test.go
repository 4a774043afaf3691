package allocatord_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// network writes a network; its created time grows from call to call.
func (c *cluster) network(id string, change ...func(s *musterv1.NetworkSpec)) {
	c.t.Helper()
	spec := &musterv1.NetworkSpec{Name: id}
	for _, f := range change {
		f(spec)
	}
	c.update(func(tx *store.Tx) {
		c.tables.Networks.Put(tx, id, &recordv1.Network{Spec: spec, CreatedAt: time.Now().UnixMilli()})
	})
}

func subnet(cidr string) func(s *musterv1.NetworkSpec) {
	return func(s *musterv1.NetworkSpec) {
		if s.Ipam == nil {
			s.Ipam = &musterv1.IPAMOptions{}
		}
		s.Ipam.Configs = append(s.Ipam.Configs, &musterv1.IPAMConfig{Subnet: cidr})
	}
}

func ingress(s *musterv1.NetworkSpec) { s.Ingress = true }

func driver(name string) func(s *musterv1.NetworkSpec) {
	return func(s *musterv1.NetworkSpec) { s.Driver = &musterv1.Driver{Name: name} }
}

func (c *cluster) remove(network string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) { c.tables.Networks.Delete(tx, network) })
}

func (c *cluster) state(network string) *recordv1.NetworkState {
	s, _ := c.tables.NetworkStates.Get(c.store.Snapshot(), network)
	return s.Value
}

// assign gives nodes tasks: "node/service/task", on networks.
func (c *cluster) assign(networks []string, tasks ...string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		for _, key := range tasks {
			c.tables.Assignments.Put(tx, key, &recordv1.Assignment{Networks: networks, AssignedAt: time.Now().UnixMilli()})
		}
	})
}

func (c *cluster) unassign(tasks ...string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		for _, key := range tasks {
			c.tables.Assignments.Delete(tx, key)
			c.tables.Statuses.Delete(tx, key)
		}
	})
}

func (c *cluster) report(state musterv1.TaskState, tasks ...string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		for _, key := range tasks {
			c.tables.Statuses.Put(tx, key, &recordv1.Status{State: state})
		}
	})
}

// node writes what a node reports.
func (c *cluster) node(id string, state musterv1.NodeStatus_State, capabilities ...string) {
	c.t.Helper()
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{State: state, Description: &musterv1.NodeDescription{
			NetworkDrivers: []*musterv1.NetworkDriverDescription{{
				Name: "overlay", Drivers: []string{"overlay"}, Health: musterv1.ExecutorDescription_HEALTHY, Capabilities: capabilities,
			}},
		}})
	})
}

// on writes a service whose tasks are on networks.
func (c *cluster) on(id string, networks []string, change ...func(s *recordv1.Service)) {
	c.t.Helper()
	spec := &musterv1.TaskSpec{}
	for _, n := range networks {
		spec.Networks = append(spec.Networks, &musterv1.NetworkAttachmentConfig{Target: n})
	}
	digest, err := state.Digest(spec)
	if err != nil {
		c.t.Fatal(err)
	}
	s := &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: id}, TaskDigest: digest, CreatedAt: time.Now().UnixMilli()}
	if old, ok := c.tables.Services.Get(c.store.Snapshot(), id); ok {
		s.CreatedAt = old.Value.CreatedAt
	}
	for _, f := range change {
		f(s)
	}
	c.update(func(tx *store.Tx) {
		c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec})
		c.tables.Services.Put(tx, id, s)
	})
}

func publishes(ports ...*musterv1.PortConfig) func(s *recordv1.Service) {
	return func(s *recordv1.Service) { s.Spec.Endpoint = &musterv1.EndpointSpec{Ports: ports} }
}

func mode(m musterv1.EndpointSpec_Mode) func(s *recordv1.Service) {
	return func(s *recordv1.Service) { s.Spec.Endpoint = &musterv1.EndpointSpec{Mode: m} }
}

func createdAt(at int64) func(s *recordv1.Service) {
	return func(s *recordv1.Service) { s.CreatedAt = at }
}

func mesh(target, published uint32) *musterv1.PortConfig {
	return &musterv1.PortConfig{TargetPort: target, PublishedPort: published}
}

// blocks returns the blocks of a network as "number node".
func (c *cluster) blocks(network string) string {
	var out []string
	for b := range c.tables.Blocks.Scan(c.store.Snapshot(), network+"/") {
		number, _ := state.BlockNumber(b.Key)
		out = append(out, fmt.Sprint(number, " ", b.Value.NodeId))
	}
	return strings.Join(out, ", ")
}

func (c *cluster) wantBlocks(network, want string) {
	c.t.Helper()
	if got := c.blocks(network); got != want {
		c.t.Errorf("blocks of %s are %q, want %q", network, got, want)
	}
}

// vips returns the virtual addresses of a service as "network address".
func (c *cluster) vips(service string) string {
	e, _ := c.tables.Endpoints.Get(c.store.Snapshot(), service)
	var out []string
	for _, v := range e.Value.GetEndpoint().GetVirtualIps() {
		out = append(out, v.NetworkId+" "+v.Address)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (c *cluster) wantVIPs(service, want string) {
	c.t.Helper()
	if got := c.vips(service); got != want {
		c.t.Errorf("virtual addresses of %s are %q, want %q", service, got, want)
	}
}

// published returns the numbers of a service's ports, and why some are missing.
func (c *cluster) published(service string) (numbers []uint32, why string) {
	e, _ := c.tables.Endpoints.Get(c.store.Snapshot(), service)
	for _, p := range e.Value.GetEndpoint().GetPorts() {
		numbers = append(numbers, p.PublishedPort)
	}
	return numbers, e.Value.GetError()
}

func (c *cluster) wantPorts(service, why string, want ...uint32) {
	c.t.Helper()
	if got, err := c.published(service); !slices.Equal(got, want) || err != why {
		c.t.Errorf("service %s publishes %v, error %q; want %v, error %q", service, got, err, want, why)
	}
}

func tasks(node, service string, from, to int) (keys []string) {
	for i := from; i < to; i++ {
		keys = append(keys, state.NodeTaskKey(node, service, fmt.Sprintf("t%03d", i)))
	}
	return keys
}

func TestNetworksGetSubnetsAndIdentifiers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.network("first")
		c.network("second", func(s *musterv1.NetworkSpec) { s.Ipv6Enabled = true })
		c.network("bridge", driver("bridge"))
		c.network("cni", driver("cni"))
		c.network("given", subnet("10.64.0.0/24"), subnet("fd00::/64"), func(s *musterv1.NetworkSpec) {
			s.Ipam.Configs[0].Gateway = "10.64.0.1"
			s.Ipam.Configs[0].Reserved = map[string]string{"printer": "10.64.0.9/24"}
		})
		for id, want := range map[string]string{
			"first": "10.64.0.0/16", "second": "10.65.0.0/16 fd6d:7573:7465::/64", "bridge": "10.66.0.0/16", "cni": "",
			"given": "10.64.0.0/24 fd00::/64",
		} {
			s := c.state(id)
			if got := strings.Join(s.GetSubnets(), " "); s == nil || got != want || s.Error != "" {
				t.Errorf("network %s has %q, want %q: %v", id, got, want, s)
			}
			if none := id == "bridge" || id == "cni"; none != (s.GetVni() == 0) {
				t.Errorf("network %s has identifier %d", id, s.GetVni())
			}
		}
		if a, b := c.state("first").Vni, c.state("second").Vni; a == b {
			t.Errorf("two networks have identifier %d", a)
		}
		if got := c.state("given").Reserved; !slices.Equal(got, []string{"10.64.0.1", "10.64.0.9"}) {
			t.Errorf("reserved are %v", got)
		}
	})
}

func TestAnOlderNetworkGetsNoSubnetThatAYoungerOneGives(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.network("automatic")
		time.Sleep(time.Second)
		c.network("given", subnet("10.64.0.0/16"))
		defer c.allocator()()
		c.settle()
		for network, want := range map[string]string{"automatic": "10.65.0.0/16", "given": "10.64.0.0/16"} {
			if got := c.state(network).GetSubnets(); !slices.Equal(got, []string{want}) {
				t.Errorf("network %s has subnets %v, want %s", network, got, want)
			}
		}
	})
}

func TestANetworkWithoutSubnetSaysWhyAndGetsOneWhenThereIsOne(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.update(func(tx *store.Tx) {
			c.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: &musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{
				AddressPools: []*musterv1.AddressPool{{Base: "10.9.0.0/24", Size: 24}},
			}}})
		})
		c.network("first")
		c.network("second")
		c.network("small", subnet("10.1.0.0/31"))
		if s := c.state("second"); !strings.Contains(s.GetError(), "exhausted") || len(s.GetSubnets()) > 0 {
			t.Errorf("second network: %v", s)
		}
		if s := c.state("small"); !strings.Contains(s.GetError(), "too small") {
			t.Errorf("small network: %v", s)
		}
		c.remove("first")
		if s := c.state("second"); s.GetError() != "" || !slices.Equal(s.GetSubnets(), []string{"10.9.0.0/24"}) || c.state("first") != nil {
			t.Errorf("second network: %v; first network: %v", s, c.state("first"))
		}
	})
}

func TestNodesHaveBlocksWhileTheyHaveTasks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		c.network("net")
		c.assign([]string{"net"}, tasks("a", "web", 0, 3)...)
		c.assign([]string{"net"}, tasks("b", "web", 3, 4)...)
		c.assign(nil, tasks("c", "plain", 0, 2)...)
		c.wantBlocks("net", "0 a, 1 b")
		// A block has 64 addresses, of which one is the node's own.
		c.assign([]string{"net"}, tasks("a", "web", 4, 64)...)
		c.wantBlocks("net", "0 a, 1 b")
		c.assign([]string{"net"}, tasks("a", "web", 64, 65)...)
		c.wantBlocks("net", "0 a, 1 b, 2 a")
		// Tasks that have ended need no address, and keep the blocks.
		c.report(musterv1.TaskState_SHUTDOWN, tasks("b", "web", 3, 4)...)
		c.assign([]string{"net"}, tasks("b", "web", 100, 163)...)
		c.wantBlocks("net", "0 a, 1 b, 2 a")
		stop()
		c.unassign(append(tasks("a", "web", 0, 3), tasks("a", "web", 4, 65)...)...)
		defer c.allocator()()
		c.settle()
		c.wantBlocks("net", "1 b")
		// What was freed is leased again last.
		c.assign([]string{"net"}, tasks("d", "web", 0, 1)...)
		c.wantBlocks("net", "1 b, 3 d")
		c.update(func(tx *store.Tx) { c.tables.Nodes.Put(tx, "d", &recordv1.Node{Removed: true}) })
		c.wantBlocks("net", "1 b")
		c.unassign(tasks("b", "web", 100, 163)...)
		c.wantBlocks("net", "1 b")
		c.unassign(tasks("b", "web", 3, 4)...)
		c.wantBlocks("net", "")
		if b := c.state("net"); b == nil || b.Error != "" {
			t.Errorf("network state %v", b)
		}
	})
}

// TestAFullNetworkGivesWhatIsReturned also has fewer blocks left than a node needs for its
// own address and a task: it gets none of them, and another node can use them.
func TestAFullNetworkGivesWhatIsReturned(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.network("net", subnet("10.1.0.0/29")) // blocks of one address: .2 to .6
		c.assign([]string{"net"}, tasks("a", "web", 0, 1)...)
		c.assign([]string{"net"}, tasks("b", "web", 0, 1)...)
		c.assign([]string{"net"}, tasks("c", "web", 0, 1)...)
		c.wantBlocks("net", "0 a, 1 a, 2 b, 3 b")
		c.unassign(tasks("a", "web", 0, 1)...)
		c.wantBlocks("net", "0 c, 2 b, 3 b, 4 c")
		c.assign([]string{"net"}, tasks("b", "web", 1, 2)...)
		c.wantBlocks("net", "0 c, 1 b, 2 b, 3 b, 4 c")
	})
}

func TestANetworkThatIsRemovedKeepsBlocksOfTasks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.network("net")
		c.assign([]string{"net"}, tasks("a", "web", 0, 1)...)
		c.remove("net")
		c.wantBlocks("net", "0 a")
		if c.state("net") == nil {
			t.Error("the network's subnet is free while a node has addresses of it")
		}
		c.unassign(tasks("a", "web", 0, 1)...)
		c.wantBlocks("net", "")
		if s := c.state("net"); s != nil {
			t.Errorf("network state %v is left", s)
		}
	})
}

// A block that was leased just before its network was removed is seen only by the commit
// that would free the subnet: the replica's snapshot of the blocks is older. If the block is
// returned before the next look, that look sees no change.
func TestARemovedNetworkIsFreedAfterABlockThatNoLookHasSeen(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		faulty := kvfault.New(c.kv)
		defer c.allocatorOver(faulty)()
		c.network("net")
		c.settle()
		const long = 10 * time.Second
		faulty.Inject(kvfault.Fault{Op: kvfault.Txn, Applied: true, Delay: long, Times: 2, When: func(call kvfault.Call) bool {
			return slices.Contains(call.Keys, daemon.Prefix+"/changes/endpoints")
		}})
		// The loop is busy until all of what follows is there but for the block.
		c.on("first", nil, publishes(host(80, 0)))
		// Neither the watch nor the probe, which reads many tables, shows the block.
		follow := faulty.Inject(kvfault.Fault{Prefix: daemon.Prefix + "/blocks/", Hang: true, When: func(call kvfault.Call) bool {
			return call.Op == kvfault.List || !call.Writes && len(call.Keys) > store.Shards
		}})
		c.update(func(tx *store.Tx) {
			c.tables.Blocks.Put(tx, state.BlockKey("net", 0), &recordv1.Block{NodeId: "a", Subnets: []string{"10.64.64.0/26"}})
			c.tables.Networks.Delete(tx, "net")
			c.tables.Services.Put(tx, "second", &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "second", Endpoint: &musterv1.EndpointSpec{
				Ports: []*musterv1.PortConfig{host(80, 0)},
			}}})
		})
		time.Sleep(long - 4*time.Second) // the loop has looked, and is busy again
		c.wantBlocks("net", "0 a")
		follow()
		c.settle()
		c.wantBlocks("net", "")
		time.Sleep(long)
		c.settle()
		if s := c.state("net"); s != nil {
			t.Errorf("network state %v is left", s)
		}
	})
}

func TestEveryReadyNodeHasABlockOfTheIngressNetwork(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		const ready, down = musterv1.NodeStatus_READY, musterv1.NodeStatus_DOWN
		c.node("a", ready, "ingress")
		c.node("b", ready) // not capable of it
		c.node("c", down, "ingress")
		c.network("in", ingress)
		c.wantBlocks("in", "0 a")
		c.node("c", ready, "ingress")
		c.node("a", down, "ingress")
		c.wantBlocks("in", "0 a, 1 c")
		c.update(func(tx *store.Tx) { c.tables.Nodes.Put(tx, "a", &recordv1.Node{Removed: true}) })
		c.wantBlocks("in", "1 c")
		c.update(func(tx *store.Tx) { c.tables.NodeStates.Delete(tx, "c") })
		c.wantBlocks("in", "")
	})
}

func TestAServiceKeepsItsVirtualAddressWhileItNeedsIt(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		c.network("one")
		c.network("two", subnet("10.2.0.0/24"), subnet("fd00::/64"))
		c.on("web", []string{"one", "two"})
		c.on("other", []string{"two"})
		c.on("plain", nil)
		c.on("node", []string{state.HostNetwork})
		const one, two = "one 10.64.0.1/16", "two 10.2.0.1/24, two fd00::1/64"
		c.wantVIPs("web", one+", "+two)
		c.wantVIPs("other", "two 10.2.0.2/24, two fd00::2/64")
		c.wantVIPs("plain", "")
		c.wantVIPs("node", "")
		// An update keeps it, a network that is dropped frees it when no task is on it.
		c.assign([]string{"one", "two"}, "a/web/t1")
		stop()
		defer c.allocator()()
		c.on("web", []string{"two"}, publishes(host(80, 8080)))
		c.wantVIPs("web", one+", "+two)
		c.wantPorts("web", "", 8080)
		c.report(musterv1.TaskState_SHUTDOWN, "a/web/t1")
		c.wantVIPs("web", two)
		// DNSRR and back.
		c.on("web", []string{"two"}, mode(musterv1.EndpointSpec_DNSRR))
		c.wantVIPs("web", "")
		if _, ok := c.tables.Endpoints.Get(c.store.Snapshot(), "web"); ok {
			t.Error("a service without ports and virtual addresses has an endpoint")
		}
		c.on("web", []string{"two"}, mode(musterv1.EndpointSpec_VIP))
		c.wantVIPs("web", "two 10.2.0.3/24, two fd00::3/64")
		c.update(func(tx *store.Tx) { c.tables.Services.Delete(tx, "web") })
		c.wantVIPs("web", "")
		c.on("late", []string{"two"}, createdAt(1))
		c.wantVIPs("late", "two 10.2.0.4/24, two fd00::4/64")
	})
}

// TestTasksOfAnEarlierSpecBringNoVirtualAddress restarts the allocator while tasks are on a
// network that the service has left, and on which it had no virtual address.
func TestTasksOfAnEarlierSpecBringNoVirtualAddress(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		c.network("one")
		c.on("web", []string{"one"}, mode(musterv1.EndpointSpec_DNSRR))
		c.assign([]string{"one"}, "a/web/t1")
		c.on("web", nil, mode(musterv1.EndpointSpec_VIP))
		c.wantVIPs("web", "")
		stop()
		defer c.allocator()()
		c.assign([]string{"one"}, "b/web/t2")
		c.wantVIPs("web", "")
	})
}

func TestARolledBackServiceHasTheFormerPortsAndAddresses(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.network("one")
		c.network("two")
		c.on("web", []string{"one"}, publishes(mesh(80, 8080)))
		former, _ := c.tables.Services.Get(c.store.Snapshot(), "web")
		c.on("web", []string{"two"}, publishes(mesh(80, 8081)), func(s *recordv1.Service) {
			s.SpecVersion, s.FormerTaskDigest, s.FormerEndpoint = 2, former.Value.TaskDigest, former.Value.Spec.Endpoint
		})
		c.wantPorts("web", "", 8081)
		c.update(func(tx *store.Tx) {
			c.tables.Rollouts.Put(tx, "web", &recordv1.Rollout{SpecVersion: 2, RolledBack: true})
		})
		c.wantPorts("web", "", 8080)
		if got := c.vips("web"); !strings.Contains(got, "one ") {
			t.Errorf("virtual addresses are %q, want one of network one", got)
		}
	})
}

func TestServicesWaitForAVirtualAddress(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.network("net", subnet("10.1.0.0/29")) // one virtual address
		c.on("first", []string{"net"})
		c.on("second", []string{"net"})
		c.wantVIPs("first", "net 10.1.0.1/29")
		e, _ := c.tables.Endpoints.Get(c.store.Snapshot(), "second")
		if why := e.Value.GetNetworkErrors()["net"]; !strings.Contains(why, "network net has no virtual address left") {
			t.Errorf("second service: %q", why)
		}
		c.update(func(tx *store.Tx) { c.tables.Services.Delete(tx, "first") })
		c.wantVIPs("second", "net 10.1.0.1/29")
		if e, _ = c.tables.Endpoints.Get(c.store.Snapshot(), "second"); len(e.Value.GetNetworkErrors()) > 0 {
			t.Errorf("second service: %v", e.Value.GetNetworkErrors())
		}
	})
}

func TestPortsOfTheMeshAreChosenAndKept(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		c.service("web", mesh(80, 0), mesh(443, 8443))
		c.wantPorts("web", "", 30000, 8443)
		stop()
		defer c.allocator()()
		c.service("web", mesh(443, 8443), mesh(81, 0), mesh(80, 0))
		c.wantPorts("web", "", 8443, 30001, 30000)
	})
}

func TestAConflictOfPortsNamesTheHolderAndEndsWithIt(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		// Two API servers accepted them at once.
		c.on("young", nil, createdAt(2), publishes(mesh(80, 8080), mesh(443, 8443)))
		c.on("old", nil, createdAt(1), publishes(mesh(80, 8080)))
		defer c.allocator()()
		c.settle()
		c.wantPorts("old", "", 8080)
		c.wantPorts("young", `published port 8080/tcp is in use by service "old"`, 8443)
		c.on("old", nil, publishes(mesh(80, 8081)))
		c.wantPorts("young", "", 8080, 8443)
	})
}

// A replica that was paused before it wrote what it had decided, and has lost its shards
// since, writes nothing of that.
func TestAPausedReplicaCommitsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		paused := kvfault.New(c.kv)
		defer c.allocatorOver(paused)()
		c.network("net", subnet("10.1.0.0/24"))
		c.network("plain")
		c.on("young", []string{"plain"})
		var held atomic.Int64
		resume := paused.Inject(kvfault.Fault{Op: kvfault.Txn, Hang: true, When: func(call kvfault.Call) bool {
			for _, key := range call.Keys {
				// Only commits touch these.
				if key == daemon.Prefix+"/changes/endpoints" || key == daemon.Prefix+"/changes/blocks" {
					held.Add(1)
					return true
				}
			}
			return false
		}})
		defer resume()
		defer paused.Inject(kvfault.Fault{Op: kvfault.Session, Hang: true})()
		c.on("young", []string{"net"}, createdAt(2), publishes(mesh(80, 0)))
		c.assign([]string{"net"}, "a/young/t1")
		if held.Load() < 2 {
			t.Fatal("the replica has not decided on ports and on addresses")
		}
		if err := paused.LoseSessions(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The new owner sees an older service first, and that the young one is no longer
		// on the network.
		c.on("old", []string{"net"}, createdAt(1), publishes(mesh(80, 0)))
		c.on("young", []string{"plain"}, createdAt(2), publishes(mesh(80, 0)))
		c.unassign("a/young/t1")
		c.assign([]string{"net"}, "b/old/t1")
		defer c.allocator()()
		c.settle()
		check := func(when string) {
			c.wantPorts("old", "", 30000)
			c.wantPorts("young", "", 30001)
			c.wantVIPs("old", "net 10.1.0.1/24")
			c.wantVIPs("young", "plain 10.64.0.1/16")
			c.wantBlocks("net", "0 b")
			if t.Failed() {
				t.Fatal(when)
			}
		}
		check("while the replica is paused")
		wrote := make(chan string, 100)
		seen := c.store.Snapshot()
		resume()
		c.settle()
		for ch := range c.tables.Endpoints.Changes(seen, c.store.Snapshot()) {
			wrote <- ch.Key()
		}
		for ch := range c.tables.Blocks.Changes(seen, c.store.Snapshot()) {
			wrote <- ch.Key()
		}
		check("after the pause")
		if len(wrote) > 0 {
			t.Errorf("the paused replica wrote %s", <-wrote)
		}
	})
}

func TestReplicasShareTheNetworks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		second := c.allocator()
		for i := range 20 {
			id := fmt.Sprintf("net%d", i)
			c.network(id)
			c.assign([]string{id}, tasks("a", "web", i, i+1)...)
		}
		holders := map[string]bool{}
		for f := range c.tables.AllocatorFences.Scan(c.store.Snapshot(), "") {
			holder, _, _ := strings.Cut(f.Value.Holder, "/")
			holders[holder] = true
		}
		if len(holders) != 2 {
			t.Errorf("shards are held by %v, want two replicas", holders)
		}
		second()
		for i := range 20 {
			id := fmt.Sprintf("net%d", i)
			c.wantBlocks(id, "0 a")
			c.unassign(tasks("a", "web", i, i+1)...)
			c.wantBlocks(id, "")
		}
	})
}

// Assignments and statuses are read by replicas of clusters with networks only.
func TestAClusterWithoutNetworksReadsNoAssignments(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var reads atomic.Int64
		counted := kvfault.New(c.kv)
		defer counted.Inject(kvfault.Fault{When: func(call kvfault.Call) bool {
			if slices.ContainsFunc(call.Keys, func(key string) bool { return strings.HasPrefix(key, daemon.Prefix+"/assignments/") }) {
				reads.Add(1)
			}
			return false
		}})()
		defer c.allocatorOver(counted)()
		c.assign(nil, tasks("a", "web", 0, 1)...)
		c.service("web", host(80, 8080))
		c.want("web", host(80, 8080))
		if n := reads.Load(); n != 0 {
			t.Errorf("%d calls read assignments", n)
		}
		c.network("net")
		if reads.Load() == 0 {
			t.Error("no call reads assignments although there is a network")
		}
	})
}
