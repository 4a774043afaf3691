package networks_test

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/workerd/internal/networks"
)

// restart has a new worker begin with what another one has stored.
func (n *node) restart(stored map[string]*dispatcherv1.Assignments) (stop func()) {
	n.startPlugin()
	stop = n.start()
	for _, objects := range stored {
		n.put(objects.GetObjects()...)
	}
	n.networks.Restored()
	return stop
}

func TestWorkerWithoutDispatcherAppliesWhatItStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "192.0.2.1")
		n.startPlugin()
		stop := n.start()
		n.session(net("10.64.4.0/26"), peer("node2"), service("svc"), backends(true, "a"))
		n.settle(time.Second)
		n.put(backends(false, "b"))
		n.settle(time.Minute)
		before := n.kernel.Networks()["net"].Network
		stop()

		// The machine has restarted, and no dispatcher answers.
		n.kernel = nullnetwork.NewKernel()
		stop = n.restart(n.stored)
		n.settle(time.Minute)
		n.wantBackends("a", "b")
		after := n.kernel.Networks()["net"]
		if !proto.Equal(before, after.Network) || len(after.Peers) != 1 {
			t.Errorf("restored %v with %d peers, want %v", after.Network, len(after.Peers), before)
		}
		n.networks.Remove("net")
		n.settle(time.Second)
		stop()
		if len(n.stored) != 0 {
			t.Errorf("still stored: %v", n.stored)
		}
	})
}

func TestRestartedWorkerChangesNothingBeforeADispatcherHasSaidEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "192.0.2.1")
		n.startPlugin()
		stop := n.start()
		n.session(net("10.64.4.0/26"), peer("node2"), service("svc"), backends(true, "a"))
		n.settle(time.Minute)
		stored := maps.Clone(n.stored)
		n.put(peer("node3"), backends(false, "b", "-a"))
		n.settle(time.Second)
		// The worker is killed before it has stored what changed last.
		stop()
		n.take()

		stop = n.restart(stored)
		defer stop()
		n.settle(time.Second)
		n.networks.Begin()
		n.put(net("10.64.4.0/26"), peer("node3"))
		n.settle(time.Second)
		if got := n.take(); len(got) != 0 {
			t.Errorf("applied before the dispatcher has said everything: %v", got)
		}
		n.put(service("svc"), backends(true, "b"))
		n.networks.Complete()
		n.settle(time.Second)
		if got := n.take(); len(got) != 1 || !got[0].GetComplete() {
			t.Errorf("applied: %v", got)
		}
		n.wantBackends("b")
		if peers := n.kernel.Networks()["net"].Peers; len(peers) != 1 || peers["node3"] == nil {
			t.Errorf("peers: %v, want node3", peers)
		}
	})
}

func TestRestartedWorkerHasADataPathBeforeItsPluginsAnswer(t *testing.T) {
	t.Parallel()
	described := func(objects ...*dispatcherv1.AssignedObject) *musterv1.DataPath {
		nets := networks.New(networks.Config{NodeID: "node1", DataPathAddress: "192.0.2.1", DataPathPort: 4789, Logger: zap.NewNop()})
		for _, o := range objects {
			nets.Put(o)
		}
		nets.Restored()
		node := &musterv1.NodeDescription{}
		nets.Describe(node)
		return node.DataPath
	}
	if got := described(net("10.64.4.0/26")); got.GetAddress() != "192.0.2.1" || got.GetPort() != 4789 {
		t.Errorf("a worker with networks reports the data path %v", got)
	}
	if got := described(); got != nil {
		t.Errorf("a worker without networks reports the data path %v", got)
	}
}
