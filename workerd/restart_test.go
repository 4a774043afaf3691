//go:build linux

package workerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/sdk"
	testwait "github.com/musterhq/muster/test/kit/wait"
	"github.com/musterhq/muster/workerd"
)

// Roles that the test binary can be started in.
const (
	roleWorker   = "be-a-worker"
	roleExecutor = "be-an-executor"
	roleProcess  = "be-the-process-executor"
)

// TestMain lets the test binary be the worker and the executor of the tests
// that kill them.
func TestMain(m *testing.M) {
	process.Supervise(os.Args)
	switch {
	case len(os.Args) == 2 && os.Args[1] == roleProcess:
		e, err := process.New(process.Config{StateDir: sdk.StateDir("")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sdk.Serve(e)
	case len(os.Args) == 4 && os.Args[1] == roleWorker:
		if err := beWorker(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(os.Args) == 2 && os.Args[1] == roleExecutor:
		e, err := null.New(null.Config{StateDir: sdk.StateDir("")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sdk.Serve(e)
	default:
		os.Exit(m.Run())
	}
}

// beWorker is a worker with the null and the process executor as plugins.
func beWorker(dataDir, dispatcher string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := workerd.DefaultConfig()
	cfg.DataDir = dataDir
	cfg.Dispatchers = []string{dispatcher}
	// A busy machine takes its time.
	cfg.Plugins.StartTimeout = time.Minute
	cfg.Plugins.Commands = map[string][]string{"null": {self, roleExecutor}, "process": {self, roleProcess}}
	log, err := zap.NewDevelopment()
	if err != nil {
		return err
	}
	w, err := workerd.New(workerd.Env{Logger: log, Dial: func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}}, cfg)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return w.Run(ctx)
}

// ownProcess is a worker in a process of its own.
type ownProcess struct {
	t   *testing.T
	cmd *exec.Cmd
	log bytes.Buffer
}

// spawn starts a worker process.
func spawn(t *testing.T, dataDir, dispatcher string) *ownProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &ownProcess{t: t, cmd: exec.Command(self, roleWorker, dataDir, dispatcher)}
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

// end ends the process by a signal, and waits for that.
func (p *ownProcess) end(sig syscall.Signal) {
	if p.cmd.ProcessState != nil {
		return
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	err := p.cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		p.t.Errorf("worker: %v\n%s", err, p.log.String())
	}
	if p.t.Failed() {
		p.t.Logf("log of worker %d:\n%s", p.cmd.Process.Pid, p.log.String())
	}
}

// listen starts a dispatcher on a TCP port.
func listen(t *testing.T) (d *dispatcher, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d = &dispatcher{sessions: make(chan *session, 16)}
	server := grpc.NewServer()
	dispatcherv1.RegisterDispatcherServiceServer(server, d)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d, listener.Addr().String()
}

func TestTasksOutliveTheirWorker(t *testing.T) {
	t.Parallel()
	d, address := listen(t)
	dataDir := t.TempDir()
	var tasks []assignment
	for i := range 20 {
		tasks = append(tasks, nullTask(fmt.Sprint("task", i), running, nil))
	}
	var nodeID string
	var before map[string]string
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		w := spawn(t, dataDir, address)
		s := d.await(t)
		if nodeID != "" && s.hello.GetNodeId() != nodeID {
			t.Errorf("node id changed from %s to %s", nodeID, s.hello.GetNodeId())
		}
		nodeID = s.hello.GetNodeId()
		s.welcome()
		// A plugin that takes long to start is reported when it is up.
		testwait.True(t, "the executor is reported", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			node := append([]*NodeDescription{s.hello.GetDescription()}, s.described...)[len(s.described)]
			return len(node.GetExecutors()) == 2 && node.GetExecutors()[0].GetHealth() == ExecutorDescription_HEALTHY
		})
		if before != nil {
			// What ran before is known before anything was assigned.
			testwait.True(t, "tasks are reported again", func() bool { return s.allAre(running, tasks) })
		}
		s.assign(true, tasks)
		testwait.True(t, "tasks run", func() bool { return s.allAre(running, tasks) })
		now := held(t, dataDir)
		if before != nil && fmt.Sprint(before) != fmt.Sprint(now) {
			t.Errorf("tasks were touched: before\n%v\nnow\n%v", before, now)
		}
		before = now
		w.end(sig)
	}
	if len(before) != len(tasks) {
		t.Errorf("executor holds %d tasks, want %d: %v", len(before), len(tasks), before)
	}
}

// TestKillsLoseAndDoubleNoTask kills worker and executor at random moments while tasks
// come and are withdrawn.
func TestKillsLoseAndDoubleNoTask(t *testing.T) {
	t.Parallel()
	scripts := []map[string]any{nil, {"prepareDelay": "70ms"}, {"startDelay": "70ms"}, {"prepareDelay": "30ms", "startDelay": "30ms"}}
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 0))
				h := newHost(t, t.TempDir())
				s := h.begin()
				starts := map[string]time.Time{}
				look := func() {
					for id, at := range h.started() {
						if was, known := starts[id]; known && !was.Equal(at) {
							t.Errorf("task %s was started at %s and at %s", id, was, at)
						}
						starts[id] = at
					}
				}
				var tasks []assignment
				removed := 0
				for round := range 6 {
					s.welcome()
					for i := range 10 {
						tasks = append(tasks, nullTask(fmt.Sprintf("task%d.%d", round, i), running, scripts[random.IntN(len(scripts))]))
					}
					// Some of the oldest are withdrawn.
					removed = round * 3
					s.assign(true, tasks[removed:])
					settle(time.Duration(random.IntN(150)) * time.Millisecond)
					look()
					s = h.killAndBegin()
				}
				s.welcome()
				s.assign(true, tasks[removed:])
				settle(time.Minute)
				look()
				s.wantRunning(tasks[removed:])
				if n := len(held(t, h.dataDir)); n != len(tasks)-removed {
					t.Errorf("the executor holds %d tasks, want %d", n, len(tasks)-removed)
				}
			})
		})
	}
}

func TestDamagedDatabaseCostsNoTask(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(content []byte) []byte{
		"rubbish": func([]byte) []byte { return bytes.Repeat([]byte("rubbish"), 10_000) },
		"empty":   func([]byte) []byte { return nil },
		"cut off": func(content []byte) []byte { return content[:len(content)*2/3] },
		// Pages that are no longer in use hold old copies of the same.
		"bits flipped": func(content []byte) []byte { return bytes.ReplaceAll(content, []byte("web"), []byte("wab")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testDamage(t, damage) })
		})
	}
}

func testDamage(t *testing.T, damage func(content []byte) []byte) {
	h := newHost(t, t.TempDir())
	tasks := []assignment{nullTask("a", running, nil), nullTask("b", running, nil), nullTask("c", running, nil)}
	s := h.begin()
	nodeID := s.hello.GetNodeId()
	s.welcome()
	s.assign(true, tasks)
	settle(time.Second)
	s.wantRunning(tasks)
	before := held(t, h.dataDir)
	h.kill(t.TempDir())
	path := filepath.Join(h.dataDir, "tasks.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, damage(content), 0o600); err != nil {
		t.Fatal(err)
	}

	s = h.begin()
	if s.hello.GetNodeId() != nodeID {
		t.Errorf("node id changed from %s to %s", nodeID, s.hello.GetNodeId())
	}
	s.welcome()
	// c was withdrawn meanwhile.
	s.assign(true, []assignment{tasks[0].known(running), tasks[1].known(running)})
	settle(time.Minute)
	s.wantRunning(tasks[:2])
	after := held(t, h.dataDir)
	if len(after) != 2 || before["a"] != after["a"] || before["b"] != after["b"] {
		t.Errorf("tasks were touched: before\n%v\nnow\n%v", before, after)
	}
	aside, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	logged := h.logs.FilterMessageSnippet("damaged").FilterField(zap.String("set_aside", aside[0]))
	if logged.Len() != 1 {
		t.Errorf("the log does not say what happened: %v", h.logs.All())
	}
}

func TestSecondWorkerOnDataDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, t.TempDir())
		h.begin().welcome()
		second := h.run()
		err := <-second.done
		second.done = nil
		if err == nil || !strings.Contains(err.Error(), "another worker uses it") {
			t.Errorf("the second worker ends with %v", err)
		}
	})
}
