package workerd_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	drivers "github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/network/contractv1"
)

// startNetworked runs a worker with a network plugin until the returned function is
// called, which may be done twice.
func startNetworked(t *testing.T, n *network, set executor.Set, kernel *nullnetwork.Kernel, dir string) (stop func()) {
	t.Helper()
	plugins, err := drivers.NewFixed(t.Context(), contractv1.New(nullnetwork.New(kernel, nullnetwork.Config{Version: "1.0", PublicKey: "key", EncryptedPort: 4791})))
	if err != nil {
		t.Fatal(err)
	}
	cfg := workerd.DefaultConfig()
	cfg.NodeID, cfg.Hostname, cfg.DataDir, cfg.Dispatchers = "node1", "host1", dir, []string{"d1:1"}
	cfg.DataPathAddress, cfg.DataPathPort = "10.0.0.7", 4790
	w, err := workerd.New(workerd.Env{Logger: logger(t), Dial: n.dial, Executors: set, Networks: plugins, Version: "test"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("worker: %v", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestNetworksReachTheirPluginAlsoWithoutADispatcher(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, stopDispatcher := n.serve(t, "d1:1")
		set, _ := nullSet(t)
		kernel := nullnetwork.NewKernel()
		stop := startNetworked(t, n, set, kernel, dir)
		s := d.await(t)
		node := s.hello.GetDescription()
		if all, path := node.GetNetworkDrivers(), node.GetDataPath(); len(all) != 1 || all[0].GetName() != "null" || path.GetAddress() != "10.0.0.7" || path.GetPort() != 4790 {
			t.Errorf("described: %v, %v", all, path)
		}
		if path := node.GetDataPath(); string(path.GetPublicKey()) != "key" || path.GetEncryptedPort() != 4791 {
			t.Errorf("the plugin's key and port for encrypted networks are described as %q and %d", path.GetPublicKey(), path.GetEncryptedPort())
		}
		if got := s.hello.GetAssignmentProtocol(); got != 4 {
			t.Errorf("protocol = %d", got)
		}
		s.welcome()
		task := nullTask("a", running, nil)
		task.Networks = []string{"net"}
		s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: &dispatcherv1.Assignments{
			Objects: []*dispatcherv1.AssignedObject{
				{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{
					Id: "net", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}, Blocks: []string{"10.64.4.0/26"},
				}}},
				{Object: &dispatcherv1.AssignedObject_Service{Service: &networkv1.Service{NetworkId: "net", Id: "svc"}}},
				{Object: &dispatcherv1.AssignedObject_Backends{Backends: &networkv1.Backends{
					NetworkId: "net", ServiceId: "svc", Complete: true, Backends: []*networkv1.Backend{{TaskId: "b", Addresses: []string{"10.64.9.1"}}},
				}}},
			},
		}}})
		s.assign(false, []assignment{task})
		settle(time.Minute)
		if got := s.state("a"); got.GetState() != running || len(got.GetNetworks()) != 1 || got.GetNetworks()[0].GetAddresses()[0] != "10.64.4.1" {
			t.Errorf("reported: %v", got)
		}
		stop()
		stopDispatcher()

		// The machine's networks are gone, and no dispatcher answers.
		kernel = nullnetwork.NewKernel()
		stop = startNetworked(t, n, set, kernel, dir)
		settle(time.Minute)
		net := kernel.Networks()["net"]
		if net == nil || len(net.Services["svc"].Backends) != 1 || kernel.Attached()["a"] == nil {
			t.Errorf("the plugin has the networks %v and the tasks %v", kernel.Networks(), kernel.Attached())
		}
		stop()
		for _, v := range kernel.Violations() {
			t.Error(v)
		}
	})
}

// TestTasksOfAMissingNetworkAreStopped has a worker without memory receive tasks whose
// network was removed before it started again. The dispatcher has nothing of the network to
// send.
func TestTasksOfAMissingNetworkAreStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, stopDispatcher := n.serve(t, "d1:1")
		defer stopDispatcher()
		set, _ := nullSet(t)
		stop := startNetworked(t, n, set, nullnetwork.NewKernel(), "")
		defer stop()
		s := d.await(t)
		s.welcome()
		ended := nullTask("ended", running, nil).desire(musterv1.TaskState_SHUTDOWN)
		known := nullTask("known", running, nil).desire(musterv1.TaskState_REMOVE).known(running)
		for _, task := range []assignment{ended, known} {
			task.Networks = []string{"net"}
			task.Dependencies = []*dispatcherv1.ObjectRef{{Ref: &dispatcherv1.ObjectRef_Network{Network: "net"}}}
		}
		other := nullTask("other", running, nil)
		s.assign(true, []assignment{ended, known, other})
		settle(time.Minute)
		s.wantStates(map[string]musterv1.TaskState{"ended": musterv1.TaskState_SHUTDOWN, "known": musterv1.TaskState_SHUTDOWN, "other": running})
	})
}
