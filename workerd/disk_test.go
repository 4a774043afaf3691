//go:build linux

package workerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	. "github.com/musterhq/muster/api/muster/v1"
	testdisk "github.com/musterhq/muster/test/kit/disk"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// executorOf returns what the worker last said of its executor.
func (s *session) executorOf() *ExecutorDescription {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := append([]*NodeDescription{s.hello.GetDescription()}, s.described...)[len(s.described)]
	if len(node.GetExecutors()) != 2 {
		return nil
	}
	return node.GetExecutors()[0]
}

func (s *session) healthy() bool { return s.executorOf().GetHealth() == ExecutorDescription_HEALTHY }

// On a full disk tasks run on, can be stopped, and are reported; new ones wait
// and say why, and the node says that it is better not given any. With room,
// all continues, without a new session. A worker that is killed meanwhile comes
// back.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	d, address := listen(t)
	dataDir := testdisk.Small(t, 4<<20)
	w := spawn(t, dataDir, address)
	s := d.await(t)
	s.welcome()
	testwait.True(t, "the executor is reported", s.healthy)
	old := []assignment{nullTask("a", running, nil), nullTask("b", running, nil), nullTask("c", running, nil)}
	s.assign(true, old)
	testwait.True(t, "tasks run", func() bool { return s.allAre(running, old) })
	before := held(t, dataDir)

	// Tasks come until the disk, full as it is, has no room between what was
	// written before either. Their specs are large.
	filler := filepath.Join(dataDir, "filler")
	if err := testdisk.Fill(filler); err != nil {
		t.Fatal(err)
	}
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
	testwait.True(t, "a new task says why it waits", func() bool {
		said := s.state("new19")
		return said.GetState() == TaskState_ASSIGNED &&
			strings.Contains(said.GetError(), "worker cannot write to its data directory") && strings.Contains(said.GetError(), "no space left")
	})
	testwait.True(t, "the node says that its executor is not healthy", func() bool {
		return !s.healthy() && strings.Contains(s.executorOf().GetMessage(), "data directory takes no writes")
	})
	// To stop a task needs no room, and makes some.
	s.assign(false, []assignment{old[0].desire(shutdown)}, "b")
	testwait.True(t, "a task is stopped", func() bool { return s.state("a").GetState() == shutdown })
	testwait.True(t, "a task is removed", func() bool { return held(t, dataDir)["b"] == "" })
	if now := held(t, dataDir); now["c"] != before["c"] {
		t.Errorf("a running task was touched: %s, %s", before["c"], now["c"])
	}
	select {
	case again := <-d.sessions:
		t.Errorf("there is a new session: %v", again.hello)
	default:
	}

	// The worker is killed, and comes back while the disk is still full.
	if err := testdisk.Fill(filler + "2"); err != nil {
		t.Fatal(err)
	}
	w.end(syscall.SIGKILL)
	w = spawn(t, dataDir, address)
	s = d.await(t)
	s.welcome()
	s.assign(true, append([]assignment{old[0].desire(shutdown).known(shutdown), old[2].known(running)}, fresh...))
	testwait.True(t, "what ran is reported", func() bool { return s.state("c").GetState() == running })
	testwait.True(t, "what waits says so", func() bool { return s.state("new19").GetError() != "" })
	testwait.True(t, "the node is not healthy", func() bool { return !s.healthy() })

	for _, path := range []string{filler, filler + "2"} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	testwait.True(t, "all run", func() bool { return s.allAre(running, append(fresh, old[2])) })
	testwait.True(t, "the node is healthy", s.healthy)
	for _, task := range fresh {
		if said := s.state(task.Id); said.GetError() != "" {
			t.Errorf("%s runs and says %q", task.Id, said.GetError())
		}
	}
	if now := held(t, dataDir); len(now) != len(fresh)+2 || now["c"] != before["c"] {
		t.Errorf("the executor holds %d tasks, want %d", len(now), len(fresh)+2)
	}
	w.end(syscall.SIGTERM)
	// All of it is on the disk.
	w = spawn(t, dataDir, address)
	s = d.await(t)
	s.welcome()
	testwait.True(t, "all is known again", func() bool { return s.allAre(running, append(fresh, old[2])) })
	w.end(syscall.SIGTERM)
}
