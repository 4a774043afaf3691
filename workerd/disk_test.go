//go:build linux

package workerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/musterhq/muster/api/muster/v1"
	testdisk "github.com/musterhq/muster/test/kit/disk"
)

// executorOf returns what the worker last said of its executor.
func (s *session) executorOf() *ExecutorDescription {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := append([]*NodeDescription{s.hello.GetDescription()}, s.described...)[len(s.described)]
	return node.GetExecutors()[0]
}

func (s *session) wantHealthy(want bool) {
	s.t.Helper()
	e := s.executorOf()
	if healthy := e.GetHealth() == ExecutorDescription_HEALTHY; healthy != want {
		s.t.Errorf("executor: %v, want it healthy: %t", e, want)
	}
	if !want && !strings.Contains(e.GetMessage(), "data directory takes no writes") {
		s.t.Errorf("the executor says %q, want that the data directory takes no writes", e.GetMessage())
	}
}

// TestTasksRunOnWhileDiskIsFull fills the disk of a worker. Tasks run on, can be stopped,
// and are reported; new ones wait and say why, and the node reports that it is better
// not given any. With room, all continues, without a new session. A worker that is
// killed meanwhile comes back.
func TestTasksRunOnWhileDiskIsFull(t *testing.T) {
	t.Parallel()
	first, second, third := testdisk.Small(t, 4<<20), testdisk.Small(t, 4<<20), testdisk.Small(t, 4<<20)
	synctest.Test(t, func(t *testing.T) { testFullDisk(t, first, second, third) })
}

func testFullDisk(t *testing.T, first, second, third string) {
	h := newHost(t, first)
	s := h.begin()
	s.welcome()
	s.wantHealthy(true)
	old := []assignment{nullTask("a", running, nil), nullTask("b", running, nil), nullTask("c", running, nil)}
	s.assign(true, old)
	settle(time.Second)
	s.wantRunning(old)
	before := held(t, h.dataDir)

	// Tasks come until the disk, full as it is, has no room between what was
	// written before either. Their specs are large.
	fill := func() {
		if err := testdisk.Fill(filepath.Join(h.dataDir, filler)); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	var fresh []assignment
	for i := range 20 {
		task := nullTask(fmt.Sprint("new", i), running, nil)
		task.SpecDigest = []byte(fmt.Sprint("large", i))
		task.spec = &TaskSpec{Runtime: &TaskSpec_Generic{Generic: &GenericRuntime{Kind: "null"}}, LogDriver: &LogDriver{
			Name: strings.Repeat("x", 50_000),
		}}
		fresh = append(fresh, task)
	}
	s.assign(false, fresh)
	settle(time.Minute)
	said := s.state("new19")
	if said.GetState() != TaskState_ASSIGNED ||
		!strings.Contains(said.GetError(), "worker cannot write to its data directory") || !strings.Contains(said.GetError(), "no space left") {
		t.Errorf("a new task waits without saying why: %v", said)
	}
	s.wantHealthy(false)
	// To stop a task needs no room, and makes some.
	s.assign(false, []assignment{old[0].desire(shutdown)}, "b")
	settle(time.Minute)
	if got := s.state("a").GetState(); got != shutdown {
		t.Errorf("the task to stop is %s", got)
	}
	now := held(t, h.dataDir)
	if now["b"] != "" {
		t.Error("the task to remove is still there")
	}
	if now["c"] != before["c"] {
		t.Errorf("a running task was touched: %s, %s", before["c"], now["c"])
	}
	select {
	case again := <-h.dispatcher.sessions:
		t.Errorf("there is a new session: %v", again.hello)
	default:
	}

	// The worker is killed, and comes back while the disk is still full.
	h.kill(second)
	fill()
	s = h.begin()
	s.welcome()
	s.assign(true, append([]assignment{old[0].desire(shutdown).known(shutdown), old[2].known(running)}, fresh...))
	settle(time.Minute)
	s.wantRunning(old[2:])
	if got := s.state("new19"); got.GetError() == "" {
		t.Errorf("a new task waits without saying why: %v", got)
	}
	s.wantHealthy(false)

	if err := os.Remove(filepath.Join(h.dataDir, filler)); err != nil {
		t.Fatal(err)
	}
	all := append(fresh, old[2])
	settle(time.Minute)
	s.wantRunning(all)
	s.wantHealthy(true)
	if now := held(t, h.dataDir); len(now) != len(fresh)+2 || now["c"] != before["c"] {
		t.Errorf("the executor holds %d tasks, want %d", len(now), len(fresh)+2)
	}
	// All of it is on the disk.
	h.kill(third)
	s = h.begin()
	s.welcome()
	settle(time.Minute)
	s.wantRunning(all)
}
