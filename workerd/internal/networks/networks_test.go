package networks_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/network"
)

func TestNothingIsAppliedBeforeItIsKnownWhatThereIs(t *testing.T) {
	inBubble(t, func(n *node) {
		n.networks.Begin()
		n.put(net("10.64.4.0/26"))
		n.settle(time.Minute)
		n.wantCalls()
		n.networks.Complete()
		n.settle(time.Second)
		n.wantCalls("Apply", "List")
		if got := n.take(); len(got) != 1 || !got[0].GetComplete() || got[0].GetNetworks()[0].GetNodeAddresses()[0] != "10.64.4.0" {
			n.t.Errorf("applied: %v", got)
		}
	})
}

func TestChangesDuringAnApplyAreAppliedTogether(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		n.take()
		release := n.hang("Apply")
		n.put(backends(false, "b"))
		n.settle(time.Second)
		for i := range 100 {
			n.put(backends(false, fmt.Sprint("t", i)))
			n.put(backends(false, fmt.Sprint("-t", i)))
		}
		n.put(backends(false, "c", "-a"))
		n.settle(time.Second)
		if got := n.take(); len(got) != 1 {
			n.t.Fatalf("%d calls of Apply were made at once", len(got))
		}
		release()
		n.settle(time.Second)
		n.wantBackends("b", "c")
		if got := n.take(); len(got) != 1 || got[0].GetComplete() || len(got[0].GetNetworks()) > 0 {
			n.t.Errorf("applied: %v", got)
		}
	})
}

func TestFailedApplyIsRepeatedWithEverything(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		n.take()
		for range 3 {
			n.fail("Apply", errors.New("nft is busy"))
		}
		n.put(backends(false, "b"))
		n.settle(time.Minute)
		n.wantBackends("a", "b")
		got := n.take()
		if len(got) != 4 || !got[3].GetComplete() {
			n.t.Errorf("applied: %v", got)
		}
	})
}

func TestPluginThatHangsIsAskedAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.hang("Apply")
		n.session(net("10.64.4.0/26"))
		n.settle(30 * time.Second)
		if err := n.attach("a"); err == nil || err.Error() != "network plugin null is not ready: it has not set up the node's networks yet" {
			n.t.Errorf("Attach = %v", err)
		}
		n.settle(time.Minute)
		if err := n.attach("a"); err != nil {
			n.t.Error(err)
		}
	})
}

func TestErrorOfANetworkIsThatOfItsTasks(t *testing.T) {
	inBubble(t, func(n *node) {
		n.broken["net"] = "no kernel module"
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		if err := n.attach("a"); err == nil || err.Error() != "network backend: no kernel module" {
			n.t.Errorf("Attach = %v, want the network's error", err)
		}
		n.mu.Lock()
		clear(n.broken)
		n.mu.Unlock()
		n.settle(time.Minute)
		if err := n.attach("a"); err != nil {
			n.t.Error(err)
		}
	})
}

func TestNewProcessIsToldEverythingAndAttachesTasksAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), peer("node2"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		for _, id := range []string{"a", "b"} {
			if err := n.attach(id); err != nil {
				n.t.Fatal(err)
			}
		}
		n.killPlugin()
		n.settle(time.Second)
		n.put(backends(false, "b"))
		n.settle(time.Second)
		n.take()
		n.mu.Lock()
		n.calls = nil
		n.mu.Unlock()
		n.startPlugin()
		n.settle(time.Second)
		n.mu.Lock()
		slices.Sort(n.calls)
		n.mu.Unlock()
		n.wantCalls("Apply", "Attach a", "Attach b", "List")
		n.wantBackends("a", "b")
		if got := n.take(); len(got) != 1 || !got[0].GetComplete() || len(got[0].GetPeers()) != 1 {
			n.t.Errorf("applied: %v", got)
		}
	})
}

func TestTaskThatCannotBeAttachedAgainIsTriedUntilItIs(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		if err := n.attach("a"); err != nil {
			n.t.Fatal(err)
		}
		n.killPlugin()
		n.settle(time.Second)
		for range 3 {
			n.fail("Attach", &wire.Error{Code: codes.Unavailable, Temporary: true, Err: errors.New("busy")})
		}
		n.mu.Lock()
		n.calls = nil
		n.mu.Unlock()
		n.startPlugin()
		n.settle(time.Minute)
		n.mu.Lock()
		n.calls = slices.DeleteFunc(n.calls, func(c string) bool { return c != "Attach a" })
		n.mu.Unlock()
		n.wantCalls("Attach a", "Attach a", "Attach a", "Attach a")
	})
}

func TestTaskIsAttachedAgainAsSoonAsItsNetworkWorks(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		if err := n.attach("a"); err != nil {
			n.t.Fatal(err)
		}
		n.killPlugin()
		n.settle(time.Second)
		var attached time.Time
		broken := func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.broken) > 0
		}
		attempt := func(context.Context) error {
			if broken() {
				return &wire.Error{Code: codes.Unavailable, Temporary: true, Err: errors.New("no kernel module")}
			}
			attached = time.Now()
			return nil
		}
		n.mu.Lock()
		n.broken["net"] = "no kernel module"
		for range 100 {
			n.faults["Attach"] = append(n.faults["Attach"], attempt)
		}
		n.mu.Unlock()
		n.startPlugin()
		n.settle(10 * time.Minute)
		n.mu.Lock()
		clear(n.broken)
		n.mu.Unlock()
		n.take()
		for len(n.take()) == 0 {
			n.settle(100 * time.Millisecond)
		}
		healed := time.Now()
		n.settle(time.Minute)
		if attached.IsZero() || attached.After(healed) {
			n.t.Errorf("task was attached again at %s, its network worked by %s", attached, healed)
		}
	})
}

func TestErrorOfANetworkIsLoggedOnce(t *testing.T) {
	inBubble(t, func(n *node) {
		n.broken["net"] = "no kernel module"
		n.session(net("10.64.4.0/26"))
		n.settle(10 * time.Minute)
		if got := n.logs.FilterMessage("network does not work on this node; retrying").Len(); got != 1 {
			n.t.Errorf("error is logged %d times, want once", got)
		}
		if applies := len(n.take()); applies < 5 {
			n.t.Errorf("network was applied %d times, want more attempts", applies)
		}
		n.mu.Lock()
		n.broken["net"] = "no rights"
		n.mu.Unlock()
		n.settle(time.Minute)
		if got := n.logs.FilterField(zap.String("error", "no rights")).Len(); got != 1 {
			n.t.Errorf("another error is logged %d times, want once", got)
		}
	})
}

func TestWarningIsReportedOnceAndTasksContinue(t *testing.T) {
	inBubble(t, func(n *node) {
		set := func(why string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.doubtful = map[string]string{"net": why}
			if why == "" {
				n.doubtful = nil
			}
		}
		message := func() string {
			d := &musterv1.NodeDescription{}
			n.networks.Describe(d)
			return d.NetworkDrivers[0].Message
		}
		set(`backend "a": no address`)
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		if err := n.attach("a"); err != nil {
			n.t.Errorf("Attach = %v, want success: only a backend is wrong", err)
		}
		if got, want := message(), `network backend: backend "a": no address`; got != want {
			n.t.Errorf("the node reports %q, want %q", got, want)
		}
		n.settle(10 * time.Minute)
		if got := n.logs.FilterMessage("part of a network does not work on this node; retrying").Len(); got != 1 {
			n.t.Errorf("the warning is logged %d times, want once", got)
		}
		set("")
		n.settle(time.Minute)
		if got := message(); got != "" {
			n.t.Errorf("the node still reports %q", got)
		}
	})
}

func TestLargeSetIsAppliedInParts(t *testing.T) {
	inBubble(t, func(n *node) {
		const services, tasks = 20, 8_000
		objects := []*dispatcherv1.AssignedObject{net("10.64.4.0/26"), peer("node2")}
		for i := range services {
			id := fmt.Sprint("svc", i)
			b := &networkv1.Backends{NetworkId: "net", ServiceId: id, Complete: true}
			for k := range tasks {
				b.Backends = append(b.Backends, &networkv1.Backend{TaskId: fmt.Sprintf("%s-%0100d", id, k)})
			}
			objects = append(objects, service(id), &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Backends{Backends: b}})
		}
		n.session(objects...)
		n.settle(time.Second)
		applied := n.take()
		if len(applied) < 2 {
			n.t.Fatalf("the set came in %d requests", len(applied))
		}
		for i, req := range applied {
			if size := proto.Size(req); size > 64<<20 {
				n.t.Errorf("request %d has %d bytes, want at most 64 MiB", i, size)
			}
			if req.GetComplete() != (i == 0) || req.GetMore() != (i < len(applied)-1) {
				n.t.Errorf("request %d has complete %t and more %t", i, req.GetComplete(), req.GetMore())
			}
		}
		got := n.kernel.Networks()["net"]
		if len(got.Peers) != 1 || len(got.Services) != services {
			n.t.Fatalf("the kernel has %d peers and %d services", len(got.Peers), len(got.Services))
		}
		for id, s := range got.Services {
			if len(s.Backends) != tasks {
				n.t.Errorf("service %s has %d backends, want %d", id, len(s.Backends), tasks)
			}
		}
	})
}

func TestCallThatDiesWithTheProcessIsTemporary(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		// The plugin host says whose error it is.
		n.fail("Attach", &wire.Error{Code: codes.Unavailable, Temporary: true, Err: errors.New("network plugin null: process ended")})
		if err := n.attach("a"); err == nil || err.Error() != "network plugin null: process ended" {
			n.t.Errorf("Attach = %v", err)
		}
		n.killPlugin()
		n.settle(time.Second)
		if err := n.attach("a"); err == nil || err.Error() != "network plugin null is not ready: it has ended" {
			n.t.Errorf("Attach = %v", err)
		}
		n.startPlugin()
		n.settle(time.Second)
		if err := n.attach("a"); err != nil {
			n.t.Error(err)
		}
	})
}

func TestPluginThatCannotWorkIsToldNothingUntilItCan(t *testing.T) {
	inBubble(t, func(n *node) {
		setSick := func(why string) {
			n.mu.Lock()
			n.sick = why
			n.mu.Unlock()
			n.changed()
			n.settle(time.Second)
		}
		setSick("CAP_NET_ADMIN is missing")
		n.session(net("10.64.4.0/26"))
		n.settle(time.Minute)
		n.wantCalls()
		if err := n.attach("a"); err == nil || err.Error() != "network plugin null is not ready: CAP_NET_ADMIN is missing" {
			n.t.Errorf("Attach = %v", err)
		}
		setSick("")
		if err := n.attach("a"); err != nil {
			n.t.Error(err)
		}
		// What goes wrong later does not end what works.
		setSick("nft is busy")
		if err := n.attach("b"); err != nil {
			n.t.Error(err)
		}
	})
}

func TestTasksThatNobodyKnowsAreDetached(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		for _, id := range []string{"a", "b"} {
			if err := n.attach(id); err != nil {
				n.t.Fatal(err)
			}
		}
		n.networks.Release("b")
		n.settle(2 * time.Minute)
		if got := slices.Sorted(maps.Keys(n.kernel.Attached())); !slices.Equal(got, []string{"a"}) {
			n.t.Errorf("attached: %v, want a", got)
		}
	})
}

func TestWorkerWithoutRecordsDetachesTasksBeforeItAttachesThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "192.0.2.1")
		// The second worker chooses other addresses than the first.
		for _, tasks := range [][]string{{"a", "b", "c"}, {"c", "b"}} {
			n.startPlugin()
			stop := n.start()
			n.session(net("10.64.4.0/26"))
			for _, id := range tasks {
				if err := n.attach(id); err != nil {
					t.Fatal(err)
				}
			}
			stop()
		}
		if got := slices.Sorted(maps.Keys(n.kernel.Attached())); !slices.Equal(got, []string{"b", "c"}) {
			t.Errorf("attached: %v, want b and c", got)
		}
		for _, v := range n.kernel.Violations() {
			t.Error(v)
		}
	})
}

func TestSetThatSaysNothingNewChangesNothing(t *testing.T) {
	inBubble(t, func(n *node) {
		all := []*dispatcherv1.AssignedObject{net("10.64.4.0/26"), peer("node2"), service("svc"), backends(true, "a", "b")}
		n.session(all...)
		n.settle(time.Second)
		n.take()
		n.session(all...)
		n.settle(time.Second)
		if got := n.take(); len(got) != 0 {
			n.t.Errorf("applied: %v", got)
		}
	})
}

func TestSetRemovesWhatItDoesNotName(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), peer("node2"), peer("node3"), service("svc"), service("old"), backends(true, "a", "b"))
		n.settle(time.Second)
		// While the session is away, and until the set is complete, everything stays.
		n.networks.Begin()
		n.put(net("10.64.4.0/26"), peer("node3"), service("svc"))
		n.settle(time.Hour)
		n.wantBackends("a", "b")
		n.networks.Complete()
		n.settle(time.Second)
		n.wantBackends()
		got := n.kernel.Networks()["net"]
		if len(got.Peers) != 1 || got.Peers["node3"] == nil || len(got.Services) != 1 {
			n.t.Errorf("the kernel has %v", got)
		}
	})
}

func TestNetworkThatComesBackHasNothingOfTheFormer(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), peer("node2"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		release := n.hang("Apply")
		n.put(peer("node4"))
		n.settle(time.Second)
		n.networks.Remove("net")
		n.put(net("10.64.4.0/26"), service("svc"))
		release()
		n.settle(time.Second)
		n.wantBackends()
		if got := n.kernel.Networks()["net"]; len(got.Peers) != 0 {
			n.t.Errorf("peers: %v", got.Peers)
		}
		n.networks.Remove("net")
		n.settle(time.Second)
		if got := n.kernel.Networks(); len(got) != 0 {
			n.t.Errorf("networks: %v", got)
		}
	})
}

func TestServiceThatComesBackHasNothingOfTheFormer(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		n.networks.Withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Service{Service: &networkv1.ServiceRef{NetworkId: "net", ServiceId: "svc"}}})
		n.put(service("svc"), backends(true, "b"))
		n.settle(time.Second)
		n.wantBackends("b")
	})
}

func TestChurnOfOtherNodesCostsFewWrites(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), service("svc"))
		n.settle(time.Minute)
		n.writes = 0
		for i := range 600 {
			n.put(backends(false, fmt.Sprint("t", i)))
			n.settle(100 * time.Millisecond)
		}
		if n.writes > 13 {
			n.t.Errorf("%d writes in a minute", n.writes)
		}
	})
}

// TestTaskWithAnAddressOfAReturnedBlockIsNotAttached has the node get another block
// between the choice of an address and Attach. A task that is attached stays.
func TestTaskWithAnAddressOfAReturnedBlockIsNotAttached(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Second)
		if err := n.attach("attached"); err != nil {
			t.Fatal(err)
		}
		wanted := []network.Attachment{{NetworkID: "net"}}
		attachments, _, err := n.networks.Reserve(t.Context(), "late", wanted)
		if err != nil {
			t.Fatal(err)
		}
		n.put(net("10.64.5.0/26"))
		n.settle(time.Second)
		_, err = n.networks.Attach(t.Context(), &network.Task{ID: "late", Namespace: "/run/netns/late", Attachments: attachments})
		if err == nil || executor.ErrorOf(err).Temporary || !strings.Contains(err.Error(), "in a block that this node has returned since") {
			t.Errorf("Attach = %v, want an error that lasts", err)
		}
		if n.kernel.Attached()["late"] != nil || n.kernel.Attached()["attached"] == nil {
			t.Errorf("attached are %v", n.kernel.Attached())
		}
		n.killPlugin()
		n.settle(time.Second)
		n.startPlugin()
		n.settle(time.Minute)
	})
}

func TestNetworksOfTwoPluginsAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nets := networks.New(networks.Config{NodeID: "node1", Logger: zap.NewNop()})
		nets.SetPlugins([]*network.Described{
			network.NewDescribed(nil, &network.About{Name: "one", Drivers: []string{"overlay"}}),
			network.NewDescribed(nil, &network.About{Name: "two", Drivers: []string{"cni"}}),
		})
		nets.Put(net("10.64.4.0/26"))
		nets.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{Id: "lan", Name: "lan", Driver: "cni"}}})
		_, _, err := nets.Reserve(t.Context(), "a", []network.Attachment{{NetworkID: "net"}, {NetworkID: "lan"}})
		if want := "networks backend and lan are served by different plugins, one and two: attach the service to networks of one plugin"; err == nil || err.Error() != want {
			t.Errorf("Reserve = %v, want %s", err, want)
		}
		// A driver that chooses addresses itself is given none.
		got, plugin, err := nets.Reserve(t.Context(), "a", []network.Attachment{{NetworkID: "lan"}})
		if err != nil || plugin != "two" || len(got) != 1 || len(got[0].Addresses) != 0 {
			t.Errorf("Reserve = %v, %s, %v", got, plugin, err)
		}
	})
}

func TestTaskWaitsForAPluginThatStarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nets := networks.New(networks.Config{NodeID: "node1", Logger: zap.NewNop()})
		nets.Put(net("10.64.4.0/26"))
		reserve := func() error {
			_, _, err := nets.Reserve(t.Context(), "a", []network.Attachment{{NetworkID: "net"}})
			return err
		}
		nets.SetPlugins([]*network.Described{network.NewDescribed(nil, nil)})
		if err := reserve(); err == nil || !executor.ErrorOf(err).Temporary {
			t.Errorf("while a plugin starts: %v, want a temporary error", err)
		}
		nets.SetPlugins([]*network.Described{network.NewDescribed(nil, &network.About{Name: "two", Healthy: true, Drivers: []string{"cni"}})})
		if err := reserve(); err == nil || executor.ErrorOf(err).Temporary {
			t.Errorf("without a plugin for the driver: %v, want an error that is not temporary", err)
		}
	})
}

func TestProbeSaysWhyANodeCannotTry(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.4.0/26"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		got, err := n.networks.Probe(context.Background(), "net", "svc")
		if err != nil || len(got.GetChecks()) != 1 || got.Checks[0].GetTaskId() != "a" {
			n.t.Errorf("Probe = %v, %v, want one attempt", got, err)
		}
		for _, test := range []struct{ network, service, want string }{
			{"other", "svc", "it has no addresses of network other: choose a node that runs tasks on it"},
			{"net", "other", "it was not told of the service on network backend yet"},
		} {
			if _, err := n.networks.Probe(context.Background(), test.network, test.service); err == nil || err.Error() != test.want {
				n.t.Errorf("Probe = %v, want %q", err, test.want)
			}
		}
		n.killPlugin()
		n.settle(time.Second)
		if _, err := n.networks.Probe(context.Background(), "net", "svc"); err == nil {
			n.t.Error("Probe succeeds without a process of the plugin")
		}
	})
}

// A plugin refuses to connect a node to others if it does not know where the node is.
func TestPluginIsToldNothingBeforeTheNodesAddressIsKnown(t *testing.T) {
	inBubbleAt(t, "", func(n *node) {
		n.session(net("10.64.4.0/26"))
		n.settle(time.Minute)
		n.wantCalls()
		description := &musterv1.NodeDescription{}
		n.networks.Describe(description)
		if len(description.NetworkDrivers) == 0 || description.DataPath != nil {
			n.t.Errorf("before the address is known the node reports plugins %v and data path %v", description.NetworkDrivers, description.DataPath)
		}
		n.networks.SetAddress(netip.MustParseAddr("192.0.2.7"))
		n.settle(time.Second)
		if got := n.take(); len(got) == 0 || got[0].GetNode().GetDataPathAddress() != "192.0.2.7" {
			n.t.Errorf("applied: %v", got)
		}
		n.networks.Describe(description)
		if got := description.DataPath.GetAddress(); got != "192.0.2.7" {
			n.t.Errorf("the node reports the data path address %q", got)
		}
	})
}
