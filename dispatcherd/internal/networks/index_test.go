package networks_test

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// changed sends what has changed of networks.
func (n *session) changed(ids []string) (messages int) {
	n.t.Helper()
	var held []assignments.Object
	for _, id := range ids {
		held = append(held, n.site.index.Network(n.node, id))
	}
	all := n.sent.Changes(nil, held, limits, time.Now())
	n.apply(all)
	return len(all)
}

// TestNodesKnowTheirNetworks checks that nodes know exactly what the records say of
// their networks: whatever changes, in whatever order records arrive, however late a
// session sends, and after each new session.
func TestNodesKnowTheirNetworks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := newSite(t)
		nodes := []string{"n1", "n2", "n3"}
		sessions := map[string]*session{}
		// behind holds what each session still has to compare.
		behind := map[string]map[string]struct{}{}
		for _, node := range nodes {
			sessions[node], behind[node] = s.connect(rt, node), map[string]struct{}{}
		}
		look := func() {
			for node, ids := range s.advance() {
				for _, id := range ids {
					behind[node][id] = struct{}{}
				}
			}
		}
		send := func(node string) {
			sessions[node].changed(slices.Sorted(maps.Keys(behind[node])))
			clear(behind[node])
		}
		for range rapid.IntRange(0, 60).Draw(rt, "changes") {
			s.update(randomChange(rt, s))
			if rapid.Bool().Draw(rt, "look") {
				look()
			}
			node := rapid.SampledFrom(nodes).Draw(rt, "of node")
			switch rapid.IntRange(0, 9).Draw(rt, "session") {
			case 0:
				look()
				sessions[node].reconnect()
				clear(behind[node])
			case 1, 2, 3:
				send(node)
			}
		}
		look()
		for _, node := range nodes {
			send(node)
			want := s.truth(node)
			if diff := gocmp.Diff(want, known(sessions[node].worker), protocmp.Transform()); diff != "" {
				rt.Fatalf("node %s (-want +got):\n%s", node, diff)
			}
			sessions[node].reconnect()
			if diff := gocmp.Diff(want, known(sessions[node].worker), protocmp.Transform()); diff != "" {
				rt.Fatalf("node %s after a new session (-want +got):\n%s", node, diff)
			}
		}
	})
}

// TestNodeOwnsOneAddressOfEachFamily checks that a worker can claim no addresses that
// other nodes would refuse, also where the driver chooses addresses.
func TestNodeOwnsOneAddressOfEachFamily(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.update(func(tx *store.Tx) {
		s.network(tx, "net1")
		s.block(tx, "net1", 1, "n1", "10.64.1.0/26")
		s.block(tx, "net1", 2, "n1", "2001:db8::/120")
		s.network(tx, "free")
		s.tables.NetworkStates.Put(tx, "net1", &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16", "2001:db8::/64"}})
		s.tables.NetworkStates.Put(tx, "free", &recordv1.NetworkState{})
	})
	s.advance()
	for network, first := range map[string]string{"net1": "10.64.1.2", "free": "192.0.2.1"} {
		for claim, want := range map[string]bool{
			first: true, "2001:db8::2": true, first + " 2001:db8::2": true,
			first + " " + first: false, first + " 10.64.1.3": false, "2001:db8::2 2001:db8::3": false,
			"::ffff:" + first: false, first + " ::ffff:" + first: false,
		} {
			if got := s.index.MayOwn("n1", &musterv1.NetworkAttachment{NetworkId: network, Addresses: strings.Fields(claim)}); got != want {
				t.Errorf("network %s: the node owns %s: %t, want %t", network, claim, got, want)
			}
		}
	}
}

// randomChange returns a change of one record.
func randomChange(t *rapid.T, s *site) func(tx *store.Tx) {
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
	network, node, service := pick("network", "net1", "net2"), pick("node", "n1", "n2", "n3"), pick("service", "s1", "s2")
	task := pick("task", "t1", "t2", "t3")
	// A task has one service and one node for its whole life.
	place := int(task[1] - '1')
	taskService, taskNode := []string{"s1", "s1", "s2"}[place], []string{"n1", "n2", "n3"}[place]
	key, taskKey := state.NodeTaskKey(taskNode, taskService, task), state.TaskKey(taskService, 1, taskNode, task)
	gone := rapid.IntRange(0, 4).Draw(t, "gone") == 0
	ts := s.tables
	switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
	case what == 0 && gone:
		return func(tx *store.Tx) { ts.Networks.Delete(tx, network) }
	case what == 0:
		record := &recordv1.Network{UpdatedAt: rapid.Int64Range(0, 1).Draw(t, "updated"), Spec: &musterv1.NetworkSpec{Name: network, Mtu: rapid.Uint32Range(0, 2).Draw(t, "mtu")}}
		return func(tx *store.Tx) { ts.Networks.Put(tx, network, record) }
	case what == 1 && gone:
		return func(tx *store.Tx) { ts.NetworkStates.Delete(tx, network) }
	case what == 1:
		record := &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, Error: pick("error", "", "", "", "full"), Reserved: []string{pick("reserved", "10.64.1.1", "10.64.1.2")}}
		return func(tx *store.Tx) { ts.NetworkStates.Put(tx, network, record) }
	case what == 2 || what == 3:
		number := rapid.Uint32Range(0, 3).Draw(t, "block")
		if gone {
			return func(tx *store.Tx) { ts.Blocks.Delete(tx, state.BlockKey(network, number)) }
		}
		return func(tx *store.Tx) { s.block(tx, network, number, node, fmt.Sprintf("10.64.%d.0/26", number)) }
	case what == 4 && gone:
		return func(tx *store.Tx) { ts.NodeStates.Delete(tx, node) }
	case what == 4:
		d := &musterv1.NodeDescription{}
		if rapid.IntRange(0, 3).Draw(t, "path") > 0 {
			d.DataPath = &musterv1.DataPath{Address: pick("address", "192.0.2.1", "192.0.2.2"), Port: 4789}
			// A node replaces its key now and then.
			d.DataPath.PublicKey = []byte(pick("key", "", "k1", "k2"))
			d.DataPath.EncryptedPort = rapid.SampledFrom([]uint32{0, 4790, 4791}).Draw(t, "encrypted port")
		}
		alive := rapid.SampledFrom([]musterv1.NodeStatus_State{musterv1.NodeStatus_READY, musterv1.NodeStatus_DOWN, musterv1.NodeStatus_UNKNOWN}).Draw(t, "alive")
		return func(tx *store.Tx) { ts.NodeStates.Put(tx, node, &recordv1.NodeState{State: alive, Description: d}) }
	case what == 5 && gone:
		return func(tx *store.Tx) { ts.Services.Delete(tx, service) }
	case what == 5:
		record := &recordv1.Service{
			Spec: &musterv1.ServiceSpec{Name: service}, TaskDigest: []byte(pick("digest", "d0", "d1", "d2", "d3")),
			FormerTaskDigest: []byte(pick("former digest", "d0", "d1", "d2", "d3")), SpecVersion: 1,
		}
		if rapid.Bool().Draw(t, "publishes") {
			record.IngressNetworkId = "net2"
			record.Spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80}}}
		}
		return func(tx *store.Tx) { ts.Services.Put(tx, service, record) }
	case what == 6:
		mode := rapid.SampledFrom([]musterv1.EndpointSpec_Mode{musterv1.EndpointSpec_VIP, musterv1.EndpointSpec_DNSRR}).Draw(t, "mode")
		return func(tx *store.Tx) {
			// A spec never changes, and goes only when nothing refers to it.
			for i, digest := range []string{"d0", "d1", "d2", "d3"} {
				spec := &musterv1.TaskSpec{}
				for j, id := range []string{"net1", "net2"} {
					if i>>j&1 == 1 {
						spec.Networks = append(spec.Networks, &musterv1.NetworkAttachmentConfig{Target: id, Aliases: []string{digest}})
					}
				}
				ts.Specs.Put(tx, state.SpecKey([]byte(digest)), &recordv1.Spec{Task: spec})
			}
			ts.Rollouts.Put(tx, service, &recordv1.Rollout{SpecVersion: 1, RolledBack: gone})
			ts.Endpoints.Put(tx, service, &recordv1.Endpoint{Endpoint: &musterv1.Endpoint{
				Spec: &musterv1.EndpointSpec{Mode: mode}, VirtualIps: []*musterv1.VirtualIP{{NetworkId: network, Address: "10.64.0.9/16"}},
			}})
		}
	case what == 7 && gone:
		return func(tx *store.Tx) { ts.Tasks.Delete(tx, taskKey) }
	case what == 7:
		desired := rapid.SampledFrom([]musterv1.TaskState{musterv1.TaskState_READY, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_SHUTDOWN}).Draw(t, "desired")
		return func(tx *store.Tx) { ts.Tasks.Put(tx, taskKey, &recordv1.Task{Slot: 1, DesiredState: desired}) }
	case what == 8 && gone:
		return func(tx *store.Tx) { ts.Assignments.Delete(tx, key) }
	case what == 8:
		return func(tx *store.Tx) { ts.Assignments.Put(tx, key, &recordv1.Assignment{Slot: 1}) }
	case gone:
		return func(tx *store.Tx) { ts.Statuses.Delete(tx, key) }
	default:
		status := &recordv1.Status{
			State:   rapid.SampledFrom([]musterv1.TaskState{musterv1.TaskState_STARTING, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_FAILED}).Draw(t, "state"),
			Runtime: &musterv1.RuntimeStatus{Health: &musterv1.Health{State: rapid.SampledFrom([]musterv1.Health_State{0, musterv1.Health_STARTING, musterv1.Health_HEALTHY, musterv1.Health_UNHEALTHY}).Draw(t, "health")}},
		}
		for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"net1", "net2"}), 0, 2, rapid.ID).Draw(t, "attached") {
			at := &musterv1.NetworkAttachment{NetworkId: id}
			if rapid.IntRange(0, 3).Draw(t, "has an address") > 0 {
				at.Addresses = []string{pick("task's address", "10.64.1.1", "10.64.1.2")}
			}
			status.Networks = append(status.Networks, at)
		}
		return func(tx *store.Tx) { ts.Statuses.Put(tx, key, status) }
	}
}

// view is what a worker knows, or must know.
type view struct {
	Objects  map[string]proto.Message
	Backends map[string]map[string]*networkv1.Backend
}

func known(w *assignmentstest.Worker) view { return view{w.Objects, w.Backends} }

// truth returns what a node must know, as the records say.
func (s *site) truth(node string) view {
	ts, snap := s.tables, s.store.Snapshot()
	v := view{map[string]proto.Message{}, map[string]map[string]*networkv1.Backend{}}
	for record := range ts.Networks.Scan(snap, "") {
		id := record.Key
		given, ok := ts.NetworkStates.Get(snap, id)
		blocks := map[string][]string{}
		entries := slices.SortedFunc(ts.Blocks.Scan(snap, id+"/"), func(a, b store.Entry[*recordv1.Block]) int { return cmp.Compare(a.Key, b.Key) })
		for _, b := range entries {
			blocks[b.Value.NodeId] = append(blocks[b.Value.NodeId], b.Value.Subnets...)
		}
		if !ok || given.Value.Error != "" || blocks[node] == nil {
			continue
		}
		v.Objects["network/"+id] = &networkv1.Network{
			Id: id, Name: record.Value.Spec.Name, Mtu: record.Value.Spec.Mtu, Driver: "overlay", Subnets: given.Value.Subnets, Blocks: blocks[node],
			ReservedAddresses: given.Value.Reserved,
		}
		for peer, subnets := range blocks {
			if e, ok := ts.NodeStates.Get(snap, peer); ok && peer != node && e.Value.Description.DataPath != nil {
				v.Objects["peer/"+id+"/"+peer] = &networkv1.Peer{
					NetworkId: id, NodeId: peer, DataPathAddress: e.Value.Description.DataPath.Address, DataPathPort: 4789, Blocks: subnets,
					PublicKey: e.Value.Description.DataPath.PublicKey, EncryptedPort: e.Value.Description.DataPath.EncryptedPort,
				}
			}
		}
		for service := range ts.Services.Scan(snap, "") {
			s.truthOfService(v, id, service)
		}
	}
	return v
}

// inBlockOf reports whether an address is in a block of a node.
func (s *site) inBlockOf(network, node, address string) bool {
	for b := range s.tables.Blocks.Scan(s.store.Snapshot(), network+"/") {
		if b.Value.NodeId == node && netip.MustParsePrefix(b.Value.Subnets[0]).Contains(netip.MustParseAddr(address)) {
			return true
		}
	}
	return false
}

// truthOfService adds what the records say of a service on a network.
func (s *site) truthOfService(v view, network string, service store.Entry[*recordv1.Service]) {
	ts, snap := s.tables, s.store.Snapshot()
	backends := map[string]*networkv1.Backend{}
	for status := range ts.Statuses.Scan(snap, "") {
		node, of, id := state.SplitKey(status.Key)
		n, alive := ts.NodeStates.Get(snap, node)
		_, assigned := ts.Assignments.Get(snap, status.Key)
		task, ok := ts.Tasks.Get(snap, state.TaskKey(of, 1, node, id))
		health := status.Value.GetRuntime().GetHealth().GetState()
		if of != service.Key || !ok || !assigned || !alive || n.Value.State == musterv1.NodeStatus_DOWN ||
			task.Value.DesiredState != musterv1.TaskState_RUNNING || status.Value.State != musterv1.TaskState_RUNNING ||
			health == musterv1.Health_STARTING || health == musterv1.Health_UNHEALTHY {
			continue
		}
		for _, at := range status.Value.Networks {
			if at.NetworkId == network && len(at.Addresses) > 0 && s.inBlockOf(network, node, at.Addresses[0]) {
				backends[id] = &networkv1.Backend{TaskId: id, NodeId: node, Addresses: at.Addresses, Slot: 1}
			}
		}
	}
	digest, published := service.Value.TaskDigest, service.Value.Spec.GetEndpoint().GetPorts()
	if r, ok := ts.Rollouts.Get(snap, service.Key); ok && r.Value.RolledBack {
		digest, published = service.Value.FormerTaskDigest, service.Value.FormerEndpoint.GetPorts()
	}
	spec, ok := ts.Specs.Get(snap, state.SpecKey(digest))
	if !ok {
		return
	}
	endpoint, ok := ts.Endpoints.Get(snap, service.Key)
	m := &networkv1.Service{NetworkId: network, Id: service.Key, Name: service.Key, Mode: musterv1.EndpointSpec_VIP, Ports: published}
	if ok {
		m.Mode, m.Ports = endpoint.Value.Endpoint.Spec.Mode, nil
		if vip := endpoint.Value.Endpoint.VirtualIps[0]; m.Mode == musterv1.EndpointSpec_VIP && vip.NetworkId == network {
			m.VirtualIps = []string{"10.64.0.9"}
		}
	}
	on := len(backends) > 0 || network == service.Value.IngressNetworkId && len(published) > 0
	for _, at := range spec.Value.Task.Networks {
		if at.Target == network {
			on, m.Aliases = true, at.Aliases
		}
	}
	if on {
		key := assignmentstest.ServiceKey(network, service.Key)
		v.Objects[key], v.Backends[key] = m, backends
	}
}

// The records of a service may arrive after the statuses of its tasks, and the nodes
// must then be told of tasks that ran before.
func TestServiceBringsBackendsThatAreOlder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.update(func(tx *store.Tx) {
		s.network(tx, "net1")
		s.node(tx, "n1", "192.0.2.1")
		s.node(tx, "n2", "192.0.2.2")
		s.block(tx, "net1", 1, "n1", "10.64.1.0/26")
		s.block(tx, "net1", 2, "n2", "10.64.2.0/26")
		s.task(tx, "n2", "s1", "t1", "net1", "10.64.2.2")
	})
	s.advance()
	n1 := s.connect(t, "n1")
	look := func(when string, want int) {
		t.Helper()
		n1.changed(s.advance()["n1"])
		backends, ok := n1.worker.Backends[assignmentstest.ServiceKey("net1", "s1")]
		if len(backends) != want || ok != (want > 0) {
			t.Errorf("%s the node knows backends %v, want %d", when, backends, want)
		}
	}
	look("without the service", 0)
	s.update(func(tx *store.Tx) { s.service(tx, "s1", "net1") })
	look("with the service", 1)
	s.update(func(tx *store.Tx) { s.tables.Services.Delete(tx, "s1") })
	look("without the service again", 0)
	s.update(func(tx *store.Tx) { s.service(tx, "s1", "net1") })
	look("with the service again", 1)
}
