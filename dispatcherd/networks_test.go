package dispatcherd

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// network makes a network.
func (c *cluster) network(id string) {
	c.update(func(tx *store.Tx) {
		c.tables.Networks.Put(tx, id, &recordv1.Network{Spec: &musterv1.NetworkSpec{Name: "name-of-" + id}})
		c.tables.NetworkStates.Put(tx, id, &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, Vni: 4096})
	})
}

// lease gives a node a block: 10.64.<number>.0/26.
func (c *cluster) lease(network string, number uint32, node string) {
	c.update(func(tx *store.Tx) {
		c.tables.Blocks.Put(tx, state.BlockKey(network, number), &recordv1.Block{NodeId: node, Subnets: []string{fmt.Sprintf("10.64.%d.0/26", number)}, LeasedAt: int64(number)})
	})
}

// networked makes a service with one spec, whose tasks are on networks.
func (c *cluster) networked(id string, networks ...string) {
	spec := &musterv1.TaskSpec{}
	for _, network := range networks {
		spec.Networks = append(spec.Networks, &musterv1.NetworkAttachmentConfig{Target: network})
	}
	c.update(func(tx *store.Tx) {
		c.tables.Services.Put(tx, id, &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "name-of-" + id}, TaskDigest: []byte("digest-of-" + id)})
		c.tables.Specs.Put(tx, state.SpecKey([]byte("digest-of-"+id)), &recordv1.Spec{Task: spec})
	})
}

func (c *cluster) endpoint(service string, mode musterv1.EndpointSpec_Mode, vip string) {
	c.update(func(tx *store.Tx) {
		e := &musterv1.Endpoint{Spec: &musterv1.EndpointSpec{Mode: mode}}
		if vip != "" {
			e.VirtualIps = []*musterv1.VirtualIP{{NetworkId: "net1", Address: vip}}
		}
		c.tables.Endpoints.Put(tx, service, &recordv1.Endpoint{Endpoint: e})
	})
}

// networkWorker starts a session of a node that has a network plugin.
func (c *cluster) networkWorker(node, instance, address string) *worker {
	c.t.Helper()
	w := c.newWorker(node, c.dial(address))
	d := description(node)
	d.DataPath = &musterv1.DataPath{Address: "192.0.2." + strings.TrimPrefix(node, "n"), Port: 4789}
	w.hello(&dispatcherv1.Hello{NodeId: node, InstanceId: instance, Description: d, AssignmentProtocol: 2})
	return w
}

// runs is a report that a task runs with an address on a network.
func runs(task, network, address string, health musterv1.Health_State) *dispatcherv1.ReportedStatus {
	return &dispatcherv1.ReportedStatus{TaskId: task, Status: &musterv1.TaskStatus{
		State: running, Timestamp: timestamppb.Now(),
		Runtime:  &musterv1.RuntimeStatus{Health: &musterv1.Health{State: health}},
		Networks: []*musterv1.NetworkAttachment{{NetworkId: network, Addresses: []string{address}}},
	}}
}

// gathering is how long changes of networks may be held back.
const gathering = 50 * time.Millisecond

// backends returns the tasks that get a service's traffic, with their addresses.
func backends(w *worker, network, service string) map[string]string {
	time.Sleep(gathering)
	return get(w, func(w *worker) map[string]string {
		all := map[string]string{}
		for id, b := range w.model.Backends[assignmentstest.ServiceKey(network, service)] {
			all[id] = strings.Join(b.Addresses, " ")
		}
		return all
	})
}

// objects returns the keys of what a worker has of networks.
func objects(w *worker) []string {
	time.Sleep(gathering)
	return get(w, func(w *worker) []string {
		return slices.DeleteFunc(slices.Sorted(maps.Keys(w.model.Objects)), func(key string) bool { return strings.HasPrefix(key, "spec/") })
	})
}

func wantBackends(t *testing.T, when string, want map[string]string, workers ...*worker) {
	t.Helper()
	for _, w := range workers {
		if diff := cmp.Diff(want, backends(w, "net1", "s1")); diff != "" {
			t.Fatalf("%s: backends at node %s (-want +got):\n%s", when, w.node, diff)
		}
	}
}

// twoNodes has a service of two tasks on one network, one on each of two nodes.
func twoNodes(t *testing.T, address string, c *cluster) (w1, w2 *worker) {
	t.Helper()
	c.network("net1")
	c.networked("s1", "net1")
	c.lease("net1", 1, "n1")
	c.lease("net1", 2, "n2")
	w1, w2 = c.networkWorker("n1", "1", address), c.networkWorker("n2", "1", address)
	c.update(func(tx *store.Tx) {
		c.assign(tx, "n1", "s1", "t1", 1)
		c.assign(tx, "n2", "s1", "t2", 2)
	})
	for _, w := range []*worker{w1, w2} {
		if n := len(w.tasks()); n != 1 {
			t.Fatalf("node %s has %d tasks, want 1", w.node, n)
		}
	}
	w1.report(1, runs("t1", "net1", "10.64.1.2", 0))
	w2.report(1, runs("t2", "net1", "10.64.2.2", musterv1.Health_HEALTHY))
	wantBackends(t, "both run", map[string]string{"t1": "10.64.1.2", "t2": "10.64.2.2"}, w1, w2)
	return w1, w2
}

// TestTaskWaitsForABlock checks that a networked task is sent when its node has a
// block, after its network and the members of it.
func TestTaskWaitsForABlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.networked("s1", "net1")
		c.service("plain")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "t1", 1)
			c.assign(tx, "n1", "plain", "p1", 1)
		})
		synctest.Wait()
		began := time.Now()
		w := c.networkWorker("n1", "1", d.address)
		if diff := cmp.Diff(map[string]musterv1.TaskState{"p1": running}, w.tasks()); diff != "" {
			t.Fatalf("without the network (-want +got):\n%s", diff)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the complete set waited %s for a network", took)
		}
		c.network("net1")
		if n := len(w.tasks()); n != 1 {
			t.Fatalf("without a block %d tasks are sent, want 1", n)
		}
		c.lease("net1", 1, "n1")
		if n := len(w.tasks()); n != 2 {
			t.Fatalf("with a block %d tasks are sent, want 2", n)
		}
		task := get(w, func(w *worker) *dispatcherv1.AssignedTask { return w.model.Tasks["t1"] })
		if !slices.Equal(task.Networks, []string{"net1"}) || task.Dependencies[0].GetNetwork() != "net1" || task.DrainDelay.AsDuration() != 2*time.Second {
			t.Errorf("task is %v, want network net1 and a drain delay of 2 s", task)
		}
		want := &networkv1.Network{Id: "net1", Name: "name-of-net1", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}, Vni: 4096, Blocks: []string{"10.64.1.0/26"}}
		if diff := cmp.Diff(want, get(w, func(w *worker) any { return w.model.Objects["network/net1"] }), protocmp.Transform()); diff != "" {
			t.Errorf("network (-want +got):\n%s", diff)
		}
		// One more block.
		c.lease("net1", 5, "n1")
		if n := get(w, func(w *worker) int { return len(w.model.Objects["network/net1"].(*networkv1.Network).Blocks) }); n != 2 {
			t.Errorf("the node knows %d blocks, want 2", n)
		}
		// A removed service does not take the networks from its tasks.
		c.update(func(tx *store.Tx) {
			c.tables.Assignments.Put(tx, "n1/s1/t1", &recordv1.Assignment{Slot: 1, Networks: []string{"net1"}})
			c.tables.Services.Delete(tx, "s1")
			c.tables.Specs.Delete(tx, state.SpecKey([]byte("digest-of-s1")))
		})
		c.update(func(tx *store.Tx) {
			c.tables.Tasks.Put(tx, state.TaskKey("s1", 1, "", "t1"), &recordv1.Task{Slot: 1, SpecDigest: []byte("digest-of-s1"), DesiredState: musterv1.TaskState_REMOVE})
		})
		task = get(w, func(w *worker) *dispatcherv1.AssignedTask { return w.model.Tasks["t1"] })
		if task.DesiredState != musterv1.TaskState_REMOVE || !slices.Equal(task.Networks, []string{"net1"}) {
			t.Errorf("task of a removed service is %v, want it to be removed with network net1", task)
		}
		// The last task and the blocks are gone.
		c.update(func(tx *store.Tx) {
			c.tables.Tasks.Delete(tx, state.TaskKey("s1", 1, "", "t1"))
			c.tables.Assignments.Delete(tx, "n1/s1/t1")
			c.tables.Blocks.Delete(tx, state.BlockKey("net1", 1))
			c.tables.Blocks.Delete(tx, state.BlockKey("net1", 5))
		})
		if got := objects(w); len(got) > 0 {
			t.Errorf("the worker still has %v", got)
		}
	})
}

// TestNodesOfANetworkKnowEachOther follows a service of two tasks on two nodes.
func TestNodesOfANetworkKnowEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w1, w2 := twoNodes(t, d.address, c)
		other := c.networkWorker("n3", "1", d.address)
		if diff := cmp.Diff([]string{"network/net1", "peer/net1/n2", "service/net1/s1"}, objects(w1)); diff != "" {
			t.Errorf("node n1 (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"network/net1", "peer/net1/n1", "service/net1/s1"}, objects(w2)); diff != "" {
			t.Errorf("node n2 (-want +got):\n%s", diff)
		}
		if got := objects(other); len(got) > 0 {
			t.Errorf("a node that is not on the network knows %v", got)
		}
		peer := &networkv1.Peer{NetworkId: "net1", NodeId: "n2", DataPathAddress: "192.0.2.2", DataPathPort: 4789, Blocks: []string{"10.64.2.0/26"}}
		if diff := cmp.Diff(peer, get(w1, func(w *worker) any { return w.model.Objects["peer/net1/n2"] }), protocmp.Transform()); diff != "" {
			t.Errorf("peer (-want +got):\n%s", diff)
		}
		service := func(when string, want *networkv1.Service) {
			t.Helper()
			want.NetworkId, want.Id, want.Name = "net1", "s1", "name-of-s1"
			time.Sleep(gathering)
			for _, w := range []*worker{w1, w2} {
				if diff := cmp.Diff(want, get(w, func(w *worker) any { return w.model.Objects["service/net1/s1"] }), protocmp.Transform()); diff != "" {
					t.Errorf("%s at node %s (-want +got):\n%s", when, w.node, diff)
				}
			}
		}
		service("before it has an endpoint", &networkv1.Service{Mode: musterv1.EndpointSpec_VIP})
		c.endpoint("s1", musterv1.EndpointSpec_VIP, "10.64.0.3/16")
		service("with a virtual address", &networkv1.Service{Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.64.0.3"}})
		c.endpoint("s1", musterv1.EndpointSpec_DNSRR, "")
		service("switched to DNS round robin", &networkv1.Service{Mode: musterv1.EndpointSpec_DNSRR})
		wantBackends(t, "after the switch", map[string]string{"t1": "10.64.1.2", "t2": "10.64.2.2"}, w1, w2)

		w2.report(2, runs("t2", "net1", "10.64.2.2", musterv1.Health_UNHEALTHY))
		wantBackends(t, "unhealthy", map[string]string{"t1": "10.64.1.2"}, w1, w2)
		w2.report(3, runs("t2", "net1", "10.64.2.2", musterv1.Health_HEALTHY))
		wantBackends(t, "healthy again", map[string]string{"t1": "10.64.1.2", "t2": "10.64.2.2"}, w1, w2)

		// A task that must stop leaves with the commit that says so, and a message is
		// all that it costs.
		before := get(w1, func(w *worker) int { return len(w.messages) })
		c.desire("n2", "s1", "t2", 2, shutdown)
		if w2.tasks()["t2"] != shutdown {
			t.Error("the task is not told to stop")
		}
		wantBackends(t, "stopped", map[string]string{"t1": "10.64.1.2"}, w1, w2)
		if n := get(w1, func(w *worker) int { return len(w.messages) }) - before; n != 1 {
			t.Errorf("the other node got %d messages, want 1", n)
		}
		// Where the allocator searches next does not concern nodes.
		before = get(w1, func(w *worker) int { return len(w.messages) })
		c.update(func(tx *store.Tx) {
			c.tables.NetworkStates.Put(tx, "net1", &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, Vni: 4096, NextBlock: 7})
		})
		if n := get(w1, func(w *worker) int { return len(w.messages) }) - before; n != 0 {
			t.Errorf("a node gets %d messages of the allocator's next block, want none", n)
		}
		c.update(func(tx *store.Tx) { c.tables.Services.Delete(tx, "s1") })
		if diff := cmp.Diff([]string{"network/net1", "peer/net1/n2"}, objects(w1)); diff != "" {
			t.Errorf("without the service (-want +got):\n%s", diff)
		}
	})
}

// TestNodeThatIsDownGetsNoTraffic checks that its tasks leave when it is DOWN, and come
// back with it.
func TestNodeThatIsDownGetsNoTraffic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w1, w2 := twoNodes(t, d.address, c)
		both := map[string]string{"t1": "10.64.1.2", "t2": "10.64.2.2"}
		w2.hangUp()
		w1.live(time.Second)
		c.wantNode("n2", away)
		wantBackends(t, "away", both, w1)
		w1.live(4 * time.Second)
		c.wantNode("n2", fallen)
		wantBackends(t, "down", map[string]string{"t1": "10.64.1.2"}, w1)
		if diff := cmp.Diff([]string{"network/net1", "peer/net1/n2", "service/net1/s1"}, objects(w1)); diff != "" {
			t.Errorf("a node that is down keeps its block (-want +got):\n%s", diff)
		}
		w2 = c.networkWorker("n2", "1", d.address)
		c.wantNode("n2", ready)
		wantBackends(t, "back", both, w1, w2)
		c.update(func(tx *store.Tx) { c.tables.Nodes.Put(tx, "n2", &recordv1.Node{Removed: true}) })
		wantBackends(t, "removed", map[string]string{"t1": "10.64.1.2"}, w1)
	})
}

// TestNodeThatIsDownGetsNoTrafficInTime has a node end its connection, or fall silent. Its
// tasks must have left names and virtual addresses on all other nodes half a second after
// the time in which a dispatcher finds that out, also on nodes of another dispatcher.
func TestNodeThatIsDownGetsNoTrafficInTime(t *testing.T) {
	t.Parallel()
	for name, detection := range map[string]func(cfg Config) time.Duration{
		"closed": func(cfg Config) time.Duration { return cfg.ReconnectGrace },
		"silent": func(cfg Config) time.Duration { return time.Duration(cfg.HeartbeatMisses) * cfg.HeartbeatPeriod },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d1, d2 := c.dispatcher("d1"), c.dispatcher("d2")
				time.Sleep(10 * time.Second) // both have shards
				of := func(node string) string {
					if is, _ := owner(node, d1, d2); is == d1 {
						return d1.address
					}
					return d2.address
				}
				other := ""
				for i := 1; other == "" || of(other) == of("n2"); i++ {
					other = fmt.Sprint("n", 10+i)
				}
				c.network("net1")
				c.networked("s1", "net1")
				c.lease("net1", 1, other)
				c.lease("net1", 2, "n2")
				w1, w2 := c.networkWorker(other, "1", of(other)), c.networkWorker("n2", "1", of("n2"))
				c.update(func(tx *store.Tx) { c.assign(tx, "n2", "s1", "t2", 1) })
				if n := len(w2.tasks()); n != 1 {
					t.Fatalf("%d tasks, want 1", n)
				}
				w2.report(1, runs("t2", "net1", "10.64.2.2", 0))
				w2.heartbeat()
				wantBackends(t, "it runs", map[string]string{"t2": "10.64.2.2"}, w1)
				if name == "closed" {
					w2.hangUp()
				}
				within := detection(d1.cfg) + 500*time.Millisecond
				w1.live(within)
				wantBackends(t, fmt.Sprintf("after %s", within), map[string]string{}, w1)
				c.wantNode("n2", fallen)
			})
		})
	}
}

// TestNextDispatcherKnowsNetworks checks that a worker gets the complete set again from
// the dispatcher that takes its shard over.
func TestNextDispatcherKnowsNetworks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d1 := c.dispatcher("d1")
		synctest.Wait()
		w1, w2 := twoNodes(t, d1.address, c)
		before := objects(w1)
		d2 := c.dispatcher("d2")
		synctest.Wait()
		d1.kill()
		time.Sleep(20 * time.Second)
		if own, _ := owner("n1", d2); own == nil {
			t.Fatal("the shard has no owner")
		}
		// The workers keep what they had, and apply what they get to that.
		next1, next2 := c.networkWorker("n1", "1", d2.address), c.networkWorker("n2", "1", d2.address)
		if diff := cmp.Diff(before, objects(next1)); diff != "" {
			t.Errorf("after the takeover (-want +got):\n%s", diff)
		}
		both := map[string]string{"t1": "10.64.1.2", "t2": "10.64.2.2"}
		wantBackends(t, "after the takeover", both, next1, next2)
		if len(next1.tasks()) != 1 || len(next2.tasks()) != 1 {
			t.Errorf("tasks are %v and %v, want one each", next1.tasks(), next2.tasks())
		}
		_, _ = w1, w2
	})
}

// TestAddressesOfOthersAreIgnored checks that a worker cannot direct the traffic of
// others to its tasks.
func TestAddressesOfOthersAreIgnored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		c.network("net2")
		c.lease("net2", 1, "n1")
		w1, w2 := twoNodes(t, d.address, c)
		for i, lie := range []*musterv1.NetworkAttachment{
			{NetworkId: "net1", Addresses: []string{"10.64.2.2"}},
			{NetworkId: "net1", Addresses: []string{"10.64.1.2", "192.0.2.9"}},
			{NetworkId: "net1", Addresses: []string{"::ffff:10.64.1.2"}},
			{NetworkId: "net1", Addresses: []string{"10.64.1.2", "10.64.1.3"}},
			{NetworkId: "net1", Addresses: []string{"10.64.1.2", "10.64.1.2"}},
			{NetworkId: "net1", Addresses: []string{"localhost"}},
			{NetworkId: "net2", Addresses: []string{"10.64.1.2"}},
			{NetworkId: "unknown", Addresses: []string{"10.64.1.2"}},
		} {
			w1.live(time.Second)
			w2.heartbeat()
			report := runs("t1", "", "", 0)
			report.Status.Networks, report.Status.Message = []*musterv1.NetworkAttachment{lie}, fmt.Sprint(i)
			w1.report(uint64(i+2), report)
			synctest.Wait()
			if got := c.status("n1", "s1", "t1"); got.Message != fmt.Sprint(i) || len(got.Networks) > 0 {
				t.Errorf("after a report of %v the status is %v, want it without networks", lie, got)
			}
			wantBackends(t, lie.String(), map[string]string{"t2": "10.64.2.2"}, w1, w2)
		}
		time.Sleep(time.Second)
		w1.report(9, runs("t1", "net1", "10.64.1.3", 0))
		wantBackends(t, "an own address", map[string]string{"t1": "10.64.1.3", "t2": "10.64.2.2"}, w1, w2)
	})
}

// TestBlocksMayBeSeenAfterTheirAddresses has a worker report an address of a block that its
// dispatcher has not seen yet, as after another dispatcher. It is kept, and the task
// gets traffic while its node has the block.
func TestBlocksMayBeSeenAfterTheirAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w1, w2 := twoNodes(t, d.address, c)
		w1.live(time.Second)
		w2.heartbeat()
		w1.report(2, runs("t1", "net1", "10.64.3.2", 0))
		without := map[string]string{"t2": "10.64.2.2"}
		wantBackends(t, "before the block is seen", without, w1, w2)
		if got := c.status("n1", "s1", "t1").Networks; len(got) != 1 {
			t.Errorf("the status has networks %v, want one", got)
		}
		c.lease("net1", 3, "n1")
		wantBackends(t, "with the block", map[string]string{"t1": "10.64.3.2", "t2": "10.64.2.2"}, w1, w2)
		c.lease("net1", 3, "n2")
		wantBackends(t, "when another node has the block", without, w1, w2)
	})
}

// TestOlderWorkersGetNoNetworkedTasks checks that workers of former protocols get all
// other tasks.
func TestOlderWorkersGetNoNetworkedTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.network("net1")
		c.lease("net1", 1, "n1")
		c.networked("s1", "net1")
		c.service("plain")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "t1", 1)
			c.assign(tx, "n1", "plain", "p1", 1)
		})
		synctest.Wait()
		for protocol := range uint32(3) {
			w := c.newWorker("n1", c.dial(d.address))
			w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: description("n1"), AssignmentProtocol: protocol})
			c.lease("net1", 2+protocol, "n1")
			want := map[string]musterv1.TaskState{"p1": running}
			if protocol == 2 {
				want["t1"] = running
			}
			if diff := cmp.Diff(want, w.tasks()); diff != "" {
				t.Errorf("protocol %d (-want +got):\n%s", protocol, diff)
			}
			if got := objects(w); protocol < 2 && len(got) > 0 {
				t.Errorf("protocol %d: the worker has %v", protocol, got)
			}
			w.hangUp()
			time.Sleep(sessionEvery)
		}
	})
}

// TestUnusableDataPathIsReportedOnItsNode checks that a node with a data path that others
// cannot use is admitted, and says what is wrong.
func TestUnusableDataPathIsReportedOnItsNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		for want, path := range map[string]*musterv1.DataPath{
			"":                                      {Address: "192.0.2.1", Port: 4789},
			`data_path.address is "host.example"`:   {Address: "host.example", Port: 4789},
			`data_path.address is "0.0.0.0"`:        {Address: "0.0.0.0", Port: 4789},
			`data_path.address is "224.0.0.1"`:      {Address: "224.0.0.1", Port: 4789},
			`data_path.address is "fe80::1%eth0"`:   {Address: "fe80::1%eth0", Port: 4789},
			`data_path.address is "::ffff:1.2.3.4"`: {Address: "::ffff:1.2.3.4", Port: 4789},
			"data_path.port is 0":                   {Address: "192.0.2.1"},
			"data_path.port is 53":                  {Address: "192.0.2.1", Port: 53},
			"data_path.encrypted_port is 443":       {Address: "192.0.2.1", Port: 4789, EncryptedPort: 443},
			"data_path.port is 65536":               {Address: "2001:db8::1", Port: 65536},
			"data_path.public_key has 65 bytes, at": {Address: "192.0.2.1", Port: 4789, PublicKey: make([]byte, 65)},
			"data_path.encrypted_port is 65536":     {Address: "192.0.2.1", Port: 4789, EncryptedPort: 65536},
		} {
			w := c.newWorker("n1", c.dial(d.address))
			w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: &musterv1.NodeDescription{DataPath: path}})
			c.wantNode("n1", ready)
			got := c.nodeState("n1")
			if !strings.Contains(got.Message, want) || (got.Message == "") != (want == "") {
				t.Errorf("%v: the node says %q, want %q in it", path, got.Message, want)
			}
			if kept := got.Description.DataPath != nil; kept != (want == "") {
				t.Errorf("%v: the data path is kept: %t", path, kept)
			}
			w.hangUp()
			time.Sleep(time.Minute)
		}
	})
}
