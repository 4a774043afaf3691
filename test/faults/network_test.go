package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestNetwork cuts machines off from each other. Each has one of Consul's three
// servers and a replica of each manager (there are two), or a worker.
func TestNetwork(t *testing.T) {
	t.Parallel()
	need.Met(t, network.Missing())
	n, err := network.New(t.Context(), 5)
	ok(t, err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	hosts := n.Hosts()
	b := newBench(t, cluster.Config{
		ConsulServers: 3, Net: n, WorkerHosts: map[string]*network.Host{"one": hosts[3], "two": hosts[4]},
	})
	t.Run("managers cut off", func(t *testing.T) { b.cutManagers(t, n) })
	t.Run("follower slow", func(t *testing.T) { b.slowServer(t, n, false) })
	t.Run("leader slow", func(t *testing.T) { b.slowServer(t, n, true) })
	t.Run("worker cut off", func(t *testing.T) { b.cutWorker(t, n) })
	t.Run("worker removed while cut off", func(t *testing.T) { b.removeCutWorker(t, n) })
	t.Run("remove all", func(t *testing.T) { removeAll(t, b.Rig) })
}

// cutManagers cuts off a machine with the minority of Consul's servers and half of
// the managers: the others do all the work, and what is cut off writes nothing.
func (b *bench) cutManagers(t *testing.T, n *network.Net) {
	hosts := n.Hosts()
	heal := undo(t, func() error { return n.Heal(context.WithoutCancel(t.Context())) })
	ok(t, n.Cut(t.Context(), hosts[:1], hosts[1:]))
	began := time.Now()
	b.change(t)
	// This replica is the one that was cut off; the hub still reaches it.
	b.read(t, "apid")
	b.refused(t, "apid", time.Second, codes.Unavailable, codes.DeadlineExceeded)
	for time.Since(began) < hang {
		b.change(t)
	}
	ok(t, heal())
	healed := time.Now()
	b.relearn(t)
	b.settle(t)
	t.Logf("all was as before %v after the network was whole", time.Since(healed))
	b.unmoved(t)
}

// slowServer makes one of Consul's servers slow, and the network of its machine
// bad: it stands still for most of the time, but never for long enough to be taken
// for dead. Changes continue, and nothing is moved.
func (b *bench) slowServer(t *testing.T, n *network.Net, leads bool) {
	victim := b.server(t, leads)
	host := n.Hosts()[slices.Index(b.Servers.Servers(), victim)]
	whole := undo(t, func() error { return n.Lose(context.WithoutCancel(t.Context()), host, 0) })
	ok(t, n.Lose(t.Context(), host, 3))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- slow(ctx, victim, host) }()
	quick := undo(t, func() error {
		cancel()
		return <-ended
	})
	for began := time.Now(); time.Since(began) < hang; {
		b.change(t)
	}
	ok(t, quick())
	ok(t, whole())
	b.settle(t)
	b.unmoved(t)
}

// slow lets a server run for a moment now and then until ctx ends: for longer where the
// machine has no time for it, until it has answered.
func slow(ctx context.Context, s *consultest.Server, host *network.Host) error {
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	for ctx.Err() == nil {
		if err := s.Pause(); err != nil {
			return err
		}
		pause(200*time.Millisecond + rand.N(200*time.Millisecond))
		if err := s.Resume(); err != nil {
			return err
		}
		_ = wait.Until(ctx, func(ctx context.Context) error { return answers(ctx, s, host) })
		pause(20*time.Millisecond + rand.N(40*time.Millisecond))
	}
	return nil
}

// answers returns an error unless a server answers a client on its own host.
func answers(ctx context.Context, s *consultest.Server, host *network.Host) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Address+"/v1/status/leader", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// cutWorker cuts off a worker for so long that its tasks are replaced: it keeps
// them until it is back, and then stops them.
func (b *bench) cutWorker(t *testing.T, n *network.Net) {
	hosts := n.Hosts()
	id, err := b.Create(t.Context(), rig.Processes("moves", 4, rig.Sleep))
	ok(t, err)
	var before map[string]*musterv1.Task
	wait.Within(t, waitTimeout, "both workers have tasks", func(ctx context.Context) error {
		s, err := b.Service(ctx, id)
		if err != nil {
			return err
		}
		if before, err = b.Running(ctx, id, 4); err != nil {
			return err
		}
		for _, task := range before {
			if task.SpecVersion != s.SpecVersion {
				return errors.New("the tasks are those of before the update")
			}
		}
		for _, task := range before {
			if task.NodeId == b.Nodes["one"] {
				return nil
			}
		}
		// A scheduler may have heard of the worker only just now.
		err = b.Update(ctx, id, func(spec *musterv1.ServiceSpec) { spec.Task.ForceUpdate++ })
		return errors.Join(errors.New("one has none"), err)
	})
	heal := undo(t, func() error { return n.Heal(context.WithoutCancel(t.Context())) })
	ok(t, n.Cut(t.Context(), hosts[3:4], append(hosts[:3:3], hosts[4])))
	var after map[string]*musterv1.Task
	took := wait.Within(t, 3*waitTimeout, "tasks run elsewhere", func(ctx context.Context) (err error) {
		if after, err = b.Running(ctx, "moves", 4); err != nil {
			return err
		}
		for _, task := range after {
			if task.NodeId != b.Nodes["two"] {
				return fmt.Errorf("task %s is on %s", task.Name, task.NodeId)
			}
		}
		return nil
	})
	t.Logf("tasks ran elsewhere %v after their worker was cut off", took)
	for _, task := range before {
		if !rig.Alive(int(task.Status.Runtime.Pid)) {
			t.Errorf("task %s of the worker that was cut off does not run any more", task.Name)
		}
		if task.NodeId == b.Nodes["two"] && after[task.Id] == nil {
			t.Errorf("task %s of the other worker was replaced", task.Name)
		}
	}
	ok(t, heal())
	took = wait.Within(t, waitTimeout, "the worker stops what was replaced", b.Truthful)
	t.Logf("what was replaced was stopped %v after the network was whole", took)
	ok(t, rig.Same(after, running(t, b.Rig, "moves", 4)))
	ok(t, b.Remove(t.Context(), id))
}

// removeCutWorker removes the node of a worker that is cut off: the worker keeps its
// tasks until it is back, hears that it is none any more, stops them, and says what
// there is to do. Its node is gone then, so that this comes last.
func (b *bench) removeCutWorker(t *testing.T, n *network.Net) {
	hosts := n.Hosts()
	spec := rig.Processes("left", 2, rig.Sleep)
	spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.hostname==one"}}
	id, err := b.Create(t.Context(), spec)
	ok(t, err)
	var before map[string]*musterv1.Task
	wait.Within(t, waitTimeout, "tasks run", func(ctx context.Context) (err error) {
		before, err = b.Running(ctx, "left", 2)
		return err
	})
	heal := undo(t, func() error { return n.Heal(context.WithoutCancel(t.Context())) })
	ok(t, n.Cut(t.Context(), hosts[3:4], append(hosts[:3:3], hosts[4])))
	wait.Within(t, 3*waitTimeout, "the node can be removed", func(ctx context.Context) error {
		return b.RemoveNode(ctx, b.Nodes["one"])
	})
	alive := func(context.Context) error {
		for _, task := range before {
			if !rig.Alive(int(task.Status.Runtime.Pid)) {
				return fmt.Errorf("task %s does not run any more", task.Name)
			}
		}
		return nil
	}
	// For the time that it would take the worker to hear of it.
	for began := time.Now(); time.Since(began) < hang; {
		ok(t, alive(t.Context()))
		<-time.After(100 * time.Millisecond)
	}
	ok(t, heal())
	took := wait.Within(t, waitTimeout, "the worker stops its tasks", func(context.Context) error {
		there, err := b.TaskProcesses()
		if err != nil {
			return err
		}
		for _, task := range before {
			if len(there[task.Id]) > 0 {
				return fmt.Errorf("there is %s", there[task.Id][0])
			}
		}
		return nil
	})
	t.Logf("the tasks of the removed node were stopped %v after the network was whole", took)
	wait.Within(t, waitTimeout, "the worker says what to do", func(context.Context) error {
		log, err := os.ReadFile(b.Process("one").Log)
		if err == nil && !strings.Contains(string(log), "empty data directory") {
			err = errors.New("its log does not speak of an empty data directory")
		}
		return err
	})
	ok(t, b.Remove(t.Context(), id))
}
