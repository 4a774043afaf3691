package tasks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/network/contractv1"
)

// newNetworkedMachine returns a machine whose tasks are on network "net", of which the node
// has a block of four addresses.
func newNetworkedMachine(t *testing.T) *machine {
	m := newMachine(t)
	m.capabilities = append(m.capabilities, executor.ProvidesNetwork)
	m.kernel = nullnetwork.NewKernel()
	m.connected = &dispatcherv1.AssignedTask{Networks: []string{"net"}}
	m.setBlocks("10.64.4.0/30")
	t.Cleanup(func() {
		for _, v := range m.kernel.Violations() {
			t.Error(v)
		}
	})
	return m
}

// setBlocks says what the next complete set says of the network.
func (m *machine) setBlocks(blocks ...string) {
	m.objects = []*dispatcherv1.AssignedObject{{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{
		Id: "net", Name: "backend", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}, Blocks: blocks,
	}}}}
}

// connect adds to an assignment what the machine's tasks have of networks.
func (m *machine) connect(task *dispatcherv1.AssignedTask) *dispatcherv1.AssignedTask {
	if m.connected != nil {
		task.Networks, task.Ports, task.DrainDelay = m.connected.Networks, m.connected.Ports, m.connected.DrainDelay
	}
	return task
}

// newNetworks returns the networks of a life of the worker.
func (w *worker) newNetworks() *networks.Networks {
	plugin := nullnetwork.New(w.kernel, nullnetwork.Config{Fault: func(ctx context.Context, method, task string) error {
		if task == "" {
			return nil
		}
		err := w.call(ctx, strings.ToLower(method), task, func() error { return nil })
		var e *executor.Error
		if errors.As(err, &e) {
			blame := wire.BlameNobody
			if e.BlameNode {
				blame = wire.BlameNode
			}
			return &wire.Error{Code: codes.Internal, Temporary: e.Temporary, Blame: blame, Err: e.Err}
		}
		return err
	}})
	set, err := network.NewFixed(context.Background(), contractv1.New(plugin))
	if err != nil {
		w.t.Fatal(err)
	}
	return networks.New(networks.Config{
		NodeID: "node1", Plugins: set, Interval: 20 * time.Second, DataPathAddress: "192.0.2.1", Store: w, Logger: zaptest.NewLogger(w.t, zaptest.Level(zap.DPanicLevel)),
	})
}

// ApplyNetworks implements networks.Store.
func (w *worker) ApplyNetworks(changed map[string]*dispatcherv1.Assignments) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.point(); err != nil {
		return err
	}
	for id, objects := range changed {
		if objects == nil {
			delete(w.disk.contents.Networks, id)
		} else {
			w.disk.contents.Networks[id] = objects
		}
	}
	return w.point()
}

// wantConnected fails the test unless a task that starts has what it should have of
// networks. The caller holds mu.
func (w *worker) wantConnected(id string, task *executor.Task, network *executor.TaskNetwork) {
	switch {
	case w.connected == nil:
		if task.Networked || network != nil {
			w.t.Errorf("%s was started with the network %v, want none", id, network)
		}
	case !task.Networked || network == nil || network.Namespace == "" || !slices.Equal(network.Nameservers, []string{"169.254.1.1"}):
		w.t.Errorf("%s was started with the network %+v", id, network)
	case w.kernel.Attached()[id] == nil:
		w.t.Errorf("%s was started before it was attached", id)
	}
}

// inNetworkedBubble is inBubble for tasks with networks.
func inNetworkedBubble(t *testing.T, test func(m *machine)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newNetworkedMachine(t)
		m.start().sync()
		m.settle(time.Second)
		m.calls = nil
		test(m)
	})
}

// status returns what was reported of a task last.
func (m *machine) status(id string) *dispatcherv1.ReportedStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reported[id]
}

// addresses returns the addresses that were reported of a task.
func (m *machine) addresses(id string) (addresses []string) {
	for _, at := range m.status(id).GetStatus().GetNetworks() {
		addresses = append(addresses, at.GetAddresses()...)
	}
	return addresses
}

func TestTaskIsAttachedBetweenPrepareAndStart(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.wantState("a", running)
		m.wantCalls("prepare a", "attach a", "start a", "wait a")
		// The first address is the node's own.
		if got := m.addresses("a"); !slices.Equal(got, []string{"10.64.4.1"}) {
			m.t.Errorf("addresses = %v", got)
		}
		m.calls = nil
		m.withdraw("a")
		m.settle(long)
		m.wantCalls("shutdown a", "detach a", "remove a")
		m.wantNothing("a")
	})
}

func TestPluginIsToldTheAliasesOfATask(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		s := m.spec()
		s.Spec.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "net", Aliases: []string{"db"}, DriverOptions: map[string]string{"a": "b"}}}
		task := m.connect(newAssignment("a", &dispatcherv1.AssignedTask{DesiredState: running}))
		m.wanted["a"] = task
		m.worker.assign(&dispatcherv1.Assignments{Tasks: []*dispatcherv1.AssignedTask{task}, Specs: []*dispatcherv1.AssignedSpec{s}})
		m.settle(time.Second)
		at := m.kernel.Attached()["a"].GetAttachments()
		if len(at) != 1 || !slices.Equal(at[0].GetAliases(), []string{"db"}) || at[0].GetDriverOptions()["a"] != "b" {
			m.t.Errorf("plugin was told %v", at)
		}
	})
}

func TestTaskSaysThatItIsBeingAttached(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		release := m.hang("attach")
		m.want("a", running)
		m.settle(2 * time.Second)
		if got := m.status("a").GetStatus().GetMessage(); got != "attaching to networks" {
			m.t.Errorf("message = %q", got)
		}
		m.settle(slowCall)
		m.wantError("a", "network plugin null has not answered to attach within 10s; it is given more time")
		release()
		m.settle(time.Second)
		m.wantState("a", running)
		m.wantError("a", "")
	})
}

func TestTemporaryErrorOfAttachIsReportedAndTriedAgain(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.fail("attach", 3, temporary("nft is busy"))
		m.want("a", running)
		m.settle(500 * time.Millisecond)
		m.wantState("a", preparing)
		m.wantError("a", "nft is busy")
		m.settle(time.Minute)
		m.wantState("a", running)
		m.wantError("a", "")
	})
}

func TestFatalErrorOfAttachRejectsTheTask(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.fail("attach", 1, &executor.Error{BlameNode: true, Err: fmt.Errorf("no veth")})
		m.want("a", running)
		m.settle(time.Minute)
		m.wantState("a", rejected)
		m.wantError("a", "no veth")
		if !m.status("a").GetNodeToBlame() {
			m.t.Error("the node is not blamed")
		}
		// What the plugin had begun is undone.
		m.wantCalls("prepare a", "attach a", "detach a")
	})
}

func TestEndedTaskGivesItsAddressBack(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		for _, id := range []string{"a", "b", "c"} {
			m.want(id, running)
			m.settle(time.Second)
		}
		// The block is full: one address is the node's.
		m.want("d", running)
		m.settle(10 * time.Second)
		m.wantState("d", preparing)
		m.wantError("d", "network backend has no free address on this node")
		m.exit("b", 1)
		m.settle(10 * time.Second)
		m.wantState("d", running)
		if got := m.addresses("d"); !slices.Equal(got, []string{"10.64.4.2"}) {
			m.t.Errorf("addresses = %v, want those of the task that ended", got)
		}
	})
}

func TestAddressStaysWithATaskThatCannotBeDetached(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		for _, id := range []string{"a", "b", "c"} {
			m.want(id, running)
			m.settle(time.Second)
		}
		m.fail("detach", 3, fatal("device is busy"))
		m.exit("b", 0)
		m.want("d", running)
		m.settle(2 * time.Second)
		m.wantState("b", completed)
		m.wantError("b", "")
		m.wantState("d", preparing)
		m.settle(time.Minute)
		m.wantState("d", running)
	})
}

func TestFurtherBlockLetsWaitingTaskGoOn(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		for _, id := range []string{"a", "b", "c", "d"} {
			m.want(id, running)
			m.settle(time.Second)
		}
		m.wantState("d", preparing)
		m.setBlocks("10.64.4.0/30", "10.64.9.0/30")
		m.worker.assign(&dispatcherv1.Assignments{Objects: m.objects})
		m.settle(time.Second)
		m.wantState("d", running)
		if got := m.addresses("d"); !slices.Equal(got, []string{"10.64.9.0"}) {
			m.t.Errorf("addresses = %v, want one of the further block", got)
		}
	})
}

func TestHostPortsOfNetworkedTasksAreThePluginsBusiness(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.connected.Ports = []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: 30001, PublishMode: musterv1.PortConfig_HOST}}
		m.want("a", running)
		m.settle(time.Second)
		m.wantState("a", running)
		if got := m.kernel.Attached()["a"].GetPorts(); len(got) != 1 || got[0].GetPublishedPort() != 30001 {
			m.t.Errorf("the plugin was told of the ports %v", got)
		}
		m.mu.Lock()
		got := m.held["a"].told.Ports
		m.mu.Unlock()
		if len(got) != 0 {
			m.t.Errorf("the executor was told of the ports %v", got)
		}
		if got := m.status("a").GetStatus().GetPorts(); len(got) != 1 || got[0].GetPublishedPort() != 30001 {
			m.t.Errorf("reported ports = %v", got)
		}
	})
}

func TestExecutorWithoutNetworksRejectsNetworkedTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newNetworkedMachine(t)
		m.capabilities = []string{"update"}
		m.start().sync()
		m.settle(time.Second)
		m.calls = nil
		m.want("a", running)
		m.settle(time.Minute)
		m.wantState("a", rejected)
		m.wantError("a", "executor fake cannot run tasks that are attached to networks")
		m.wantCalls()
	})
}

// TestRunningNetworkedTaskIsDrained checks how long a task is left running that must be
// shut down.
func TestRunningNetworkedTaskIsDrained(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		delay *durationpb.Duration
		// until is when it is shut down.
		until time.Duration
		stop  func(m *machine)
	}{
		"by default":          {nil, 2 * time.Second, func(m *machine) { m.want("a", shutdown) }},
		"as long as it says":  {durationpb.New(7 * time.Second), 7 * time.Second, func(m *machine) { m.want("a", shutdown) }},
		"not at all":          {durationpb.New(0), 0, func(m *machine) { m.want("a", shutdown) }},
		"when it's withdrawn": {nil, 2 * time.Second, func(m *machine) { m.withdraw("a") }},
	} {
		t.Run(name, func(t *testing.T) {
			inNetworkedBubble(t, func(m *machine) {
				m.connected.DrainDelay = test.delay
				m.want("a", running)
				m.settle(time.Second)
				m.wantCalls("prepare a", "attach a", "start a", "wait a")
				test.stop(m)
				if test.until > 0 {
					m.settle(test.until - time.Millisecond)
					m.wantCalls()
					m.settle(time.Millisecond)
				}
				m.settle(0)
				m.mu.Lock()
				defer m.mu.Unlock()
				if !slices.Contains(m.calls, "shutdown a") {
					m.t.Errorf("calls = %q, want a shutdown", m.calls)
				}
			})
		})
	}
}

func TestTaskThatEndsWhileItDrainsIsNotShutDown(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.calls = nil
		m.want("a", shutdown)
		m.settle(time.Second)
		m.exit("a", 0)
		m.settle(time.Minute)
		m.wantState("a", completed)
		m.wantCalls("detach a")
	})
}

func TestTaskThatNeverRanIsNotDrained(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.want("a", ready)
		m.settle(time.Second)
		m.wantState("a", ready)
		if got := m.addresses("a"); len(got) != 1 {
			m.t.Errorf("addresses of a task that is READY = %v", got)
		}
		m.want("a", shutdown)
		m.settle(0)
		m.wantState("a", shutdown)
	})
}

func TestTasksWithoutNetworksAreNotDrained(t *testing.T) {
	inBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.want("a", shutdown)
		m.settle(0)
		m.wantState("a", shutdown)
	})
}

func TestTaskOfALostStateIsEndedBecauseItsAddressIsUnknown(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.want("a", running)
		m.settle(time.Second)
		m.mu.Lock()
		m.disk.clear()
		m.disk.contents.SetAside = "elsewhere"
		m.mu.Unlock()
		m.start().sync()
		m.settle(time.Minute)
		m.wantState("a", failed)
		m.wantError("a", "task lost: the worker's state was lost, and with it the task's addresses")
		if got := m.kernel.Attached(); len(got) != 0 {
			m.t.Errorf("still attached: %v", got)
		}
		m.want("b", running)
		m.settle(time.Second)
		m.wantState("b", running)
	})
}

func TestTaskKeepsItsAddressOverARestart(t *testing.T) {
	inNetworkedBubble(t, func(m *machine) {
		m.want("a", running)
		m.want("b", running)
		m.settle(time.Second)
		before := m.addresses("b")
		m.start().sync()
		m.settle(time.Minute)
		m.wantState("b", running)
		m.want("c", running)
		m.settle(time.Second)
		if got := m.addresses("b"); !slices.Equal(got, before) {
			m.t.Errorf("addresses = %v, want %v", got, before)
		}
		if got := m.addresses("c"); slices.Equal(got, before) || len(got) != 1 {
			m.t.Errorf("addresses of a new task = %v", got)
		}
	})
}

// networkedLives are further lives during which the worker crashes.
var networkedLives = map[string]func(m *machine){
	"others take its address": func(m *machine) {
		for _, id := range []string{"a", "b", "c"} {
			m.want(id, running)
			m.settle(long)
		}
		m.exit("b", 1)
		m.settle(long)
		m.want("d", running)
		m.settle(long)
	},
	"cannot be attached at first": func(m *machine) {
		m.fail("attach", 2, temporary("nft is busy"))
		m.fail("detach", 2, temporary("nft is busy"))
		m.want("a", running)
		m.settle(long)
		m.wantState("a", running)
		m.want("a", shutdown)
		m.settle(long)
		m.wantState("a", shutdown)
	},
}

// TestCrashOfNetworkedTasks is TestCrashAtEveryPoint for tasks with networks: no address
// ever has two holders, and nothing stays attached. See also [nullnetwork].
func TestCrashOfNetworkedTasks(t *testing.T) {
	t.Parallel()
	all := map[string]func(m *machine){
		"runs and ends":                 lives["runs and ends"],
		"is ready, runs and is stopped": lives["is ready, runs and is stopped"],
		"is withdrawn while it runs":    lives["is withdrawn while it runs"],
		"meets temporary errors":        lives["meets temporary errors"],
	}
	for name, live := range networkedLives {
		all[name] = live
	}
	for name, live := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for point := 1; ; point++ {
				crashed := false
				if !t.Run(fmt.Sprint("point=", point), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := newNetworkedMachine(t)
						crashed = crashIn(t, m, live, point, false)
						if left := m.kernel.Attached(); len(left) > 0 {
							t.Errorf("still attached: %v", left)
						}
					})
				}) {
					return
				}
				if !crashed {
					if point < 12 {
						t.Errorf("a life has %d crash points", point-1)
					}
					return
				}
			}
		})
	}
}
