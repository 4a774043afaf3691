package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// siteConfig says what to start.
type siteConfig struct {
	// embedded is muster dev in place of daemons over Consul.
	embedded bool
	// workers are processes of their own.
	workers []string
	// devWorkers is how many workers muster dev has within itself.
	devWorkers int
	// args are further flags of the managers.
	args map[string][]string
	// plugins are further executors by name: the content of their files.
	plugins map[string]string
}

// site is a cluster under test, and what a user has to speak to it.
type site struct {
	*cluster.Cluster
	siteConfig
	// dir holds logs and data; bin holds the programs, which no other site runs,
	// so that a process's program tells whose it is.
	dir, bin string
	client   musterv1.ControlServiceClient
	// nodes holds the id of each node, by its worker's name.
	nodes map[string]string
	// image is for containers of this site alone; empty until it is made.
	image string
}

// joinTimeout bounds the start of a cluster.
const joinTimeout = 2 * time.Minute

// startSite starts a cluster and waits until its workers are ready. It ends with
// the test, whatever happens, with everything that it has started.
func startSite(t *testing.T, cfg siteConfig) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "muster-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{siteConfig: cfg, dir: dir, bin: filepath.Join(dir, "bin"), nodes: map[string]string{}}
	t.Cleanup(func() { s.teardown(t) })
	if err := s.install(); err != nil {
		t.Fatal(err)
	}
	s.Cluster, err = cluster.Start(t.Context(), cluster.Config{
		Binary: s.binary(), Dir: dir, Embedded: cfg.embedded, Workers: cfg.devWorkers, Args: patiently(cfg.args),
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := daemon.Dialer(daemon.Plain().Client)(s.API)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.client = musterv1.NewControlServiceClient(conn)
	for _, name := range cfg.workers {
		if _, err := s.StartWorker(name); err != nil {
			t.Fatal(err)
		}
	}
	want := len(cfg.workers) + cfg.devWorkers
	took := wait.Within(t, joinTimeout, "nodes join", func(ctx context.Context) error {
		nodes, err := s.listNodes(ctx)
		if err != nil {
			return err
		}
		ready := 0
		for _, n := range nodes {
			s.nodes[n.Description.GetHostname()] = n.Id
			if isReady(n) && runsAll(n, "process", "null") {
				ready++
			}
		}
		if ready != want {
			return fmt.Errorf("%d nodes are ready, want %d", ready, want)
		}
		return nil
	})
	t.Logf("%d workers joined within %v", want, took)
	return s
}

// patiently returns flags of the managers with which a worker that lives is not
// taken for dead on a machine that is busy.
func patiently(args map[string][]string) map[string][]string {
	all := map[string][]string{}
	for _, daemon := range []string{"dispatcherd", "dev"} {
		all[daemon] = []string{"--heartbeat-misses=15", "--reconnect-grace=6s"}
	}
	for daemon, more := range args {
		all[daemon] = append(all[daemon], more...)
	}
	return all
}

// runsAll says whether a node has executors of these names, and that are healthy: a
// busy worker can be ready before they have answered.
func runsAll(n *musterv1.Node, names ...string) bool {
	for _, name := range names {
		if !slices.ContainsFunc(n.Description.GetExecutors(), func(e *musterv1.ExecutorDescription) bool {
			return e.GetName() == name && e.GetHealth() == musterv1.ExecutorDescription_HEALTHY
		}) {
			return false
		}
	}
	return true
}

func (s *site) binary() string { return filepath.Join(s.bin, "muster") }

// install gives the site programs of its own, under the names that they were
// built with, and the further plugins.
func (s *site) install() error {
	if err := rig.Install(built, s.bin); err != nil {
		return err
	}
	for name, content := range s.plugins {
		if err := os.WriteFile(filepath.Join(s.bin, "plugins", "muster-executor-"+name), []byte(content), 0o755); err != nil {
			return fmt.Errorf("install plugin: %w", err)
		}
	}
	return nil
}

// teardown ends everything, also what should have ended by itself, and prints
// the logs if the test has failed.
func (s *site) teardown(t *testing.T) {
	if s.Cluster != nil {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	left, err := s.processes()
	if err != nil {
		t.Error(err)
	}
	for _, p := range left {
		t.Errorf("left behind and killed: %s", p)
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
	}
	s.removeImage(t)
	if t.Failed() {
		t.Log(cluster.Logs(s.dir))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Error(err)
	}
}

// listNodes returns all nodes.
func (s *site) listNodes(ctx context.Context) ([]*musterv1.Node, error) {
	resp, err := s.client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: 1000})
	return resp.GetNodes(), err
}

// awaitNode waits until a node is as ok says.
func (s *site) awaitNode(t *testing.T, name, what string, ok func(*musterv1.Node) bool) {
	t.Helper()
	wait.Within(t, joinTimeout, name+" is "+what, func(ctx context.Context) error {
		resp, err := s.client.GetNode(ctx, &musterv1.GetNodeRequest{Node: s.nodes[name]})
		if err != nil {
			return err
		}
		if n := resp.Node; !ok(n) {
			return fmt.Errorf("it is %s (%s), with %d tasks", n.Status.GetState(), n.Status.GetMessage(), n.TaskCount)
		}
		return nil
	})
}

func isReady(n *musterv1.Node) bool { return n.Status.GetState() == musterv1.NodeStatus_READY }
func isEmpty(n *musterv1.Node) bool { return n.TaskCount == 0 }

// listTasks returns the tasks of a service, or all if it has no name.
func (s *site) listTasks(ctx context.Context, service string) ([]*musterv1.Task, error) {
	req := &musterv1.ListTasksRequest{PageSize: 1000}
	if service != "" {
		req.Services = []string{service}
	}
	resp, err := s.client.ListTasks(ctx, req)
	return resp.GetTasks(), err
}

// runTimeout bounds the time until tasks run, on a machine that is busy.
const runTimeout = 2 * time.Minute

// tasks are the tasks of a service that run, by id.
type tasks map[string]*musterv1.Task

// awaitRunning waits until a service has converged with n tasks, all of them
// running and nothing else of it desired.
func (s *site) awaitRunning(t *testing.T, service string, n int) tasks {
	t.Helper()
	return s.awaitRunningWhere(t, runTimeout, service, n, func(*musterv1.Task) bool { return true })
}

// awaitRunningWhere is the same for tasks that are all as ok says.
func (s *site) awaitRunningWhere(t *testing.T, within time.Duration, service string, n int, ok func(*musterv1.Task) bool) tasks {
	t.Helper()
	var run tasks
	wait.Within(t, within, fmt.Sprintf("%s runs %d tasks", service, n), func(ctx context.Context) (err error) {
		run, err = s.running(ctx, service, n, ok)
		return err
	})
	return run
}

func (s *site) running(ctx context.Context, service string, n int, ok func(*musterv1.Task) bool) (tasks, error) {
	resp, err := s.client.GetService(ctx, &musterv1.GetServiceRequest{Service: service})
	if err != nil {
		return nil, err
	}
	all, err := s.listTasks(ctx, service)
	if err != nil {
		return nil, err
	}
	run := tasks{}
	var others []string
	for _, task := range all {
		if task.DesiredState > musterv1.TaskState_RUNNING {
			continue
		}
		if task.DesiredState == musterv1.TaskState_RUNNING && task.Status.GetState() == musterv1.TaskState_RUNNING && ok(task) {
			run[task.Id] = task
			continue
		}
		others = append(others, fmt.Sprintf("%s on %s %s %s", task.Name, task.NodeId, task.Status.GetState(), task.Status.GetError()))
	}
	st := resp.Service.Status
	if len(run) != n || len(others) > 0 || !st.GetConverged() || st.GetDesiredTasks() != uint64(n) {
		return nil, fmt.Errorf("%d tasks run, want %d; converged %v, desired %d %s; others: %s",
			len(run), n, st.GetConverged(), st.GetDesiredTasks(), st.GetPendingReason(), strings.Join(others, "; "))
	}
	return run, nil
}

// sameRuns fails the test unless the same tasks run as before, on the same nodes,
// as the same processes and containers.
func (s *site) sameRuns(t *testing.T, before, after tasks) {
	t.Helper()
	if err := rig.Same(before, after); err != nil {
		t.Error(err)
	}
}
