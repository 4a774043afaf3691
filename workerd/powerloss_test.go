//go:build linux

package workerd_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	. "github.com/musterhq/muster/api/muster/v1"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// processTask returns a task that notes each of its starts in a file and then
// sleeps.
func processTask(t *testing.T, id, notes string) assignment {
	t.Helper()
	payload, err := structpb.NewStruct(map[string]any{"shell": "echo $MUSTER_TASK_ID >> " + notes + "; exec sleep 1000"})
	if err != nil {
		t.Fatal(err)
	}
	task := nullTask(id, running, nil)
	task.SpecDigest = []byte("process")
	task.spec = &TaskSpec{Runtime: &TaskSpec_Generic{Generic: &GenericRuntime{Kind: "process", Payload: payload}}}
	return task
}

// killTasks kills what a test that failed has left running.
func killTasks(t *testing.T, prefix string) {
	t.Cleanup(func() {
		for _, pids := range living(t, prefix) {
			for _, pid := range pids {
				// That it is gone already is as well.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

// starts returns how often each task was started.
func starts(t *testing.T, notes string) map[string]int {
	t.Helper()
	content, err := os.ReadFile(notes)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, id := range strings.Fields(string(content)) {
		all[id]++
	}
	return all
}

// living returns the processes of tasks whose ids begin so, by task.
func living(t *testing.T, prefix string) map[string][]int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]int{}
	for _, path := range files {
		// One that has ended meanwhile has none.
		content, _ := os.ReadFile(path)
		for _, variable := range bytes.Split(content, []byte{0}) {
			id, found := strings.CutPrefix(string(variable), "MUSTER_TASK_ID=")
			if !found || !strings.HasPrefix(id, prefix) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			all[id] = append(all[id], pid)
		}
	}
	return all
}

// removeAll has the worker remove its tasks, so that none outlives the test.
func removeAll(t *testing.T, s *session, prefix string, tasks []assignment) {
	t.Helper()
	var ids []string
	for _, task := range tasks {
		ids = append(ids, task.Id)
	}
	s.assign(false, nil, ids...)
	testwait.True(t, "nothing runs", func() bool { return len(living(t, prefix)) == 0 })
}

// Worker and plugins are killed at random moments while tasks come, are stopped
// and are withdrawn. The tasks are real processes, and each is started once.
func TestNoCrashDoublesAProcess(t *testing.T) {
	t.Parallel()
	d, address := listen(t)
	dataDir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	prefix := fmt.Sprintf("crash%d-", seed)
	killTasks(t, prefix)
	notes := filepath.Join(t.TempDir(), "notes")
	var assigned []assignment
	states := map[string]TaskState{}
	w := spawn(t, dataDir, address)
	s := d.await(t)
	s.welcome()
	complete := true
	set := func() []assignment {
		var all []assignment
		for _, task := range assigned {
			if state := s.state(task.Id).GetState(); state > states[task.Id] {
				states[task.Id] = state
			}
			all = append(all, task.known(states[task.Id]))
		}
		return all
	}
	for round := range 12 {
		var removed []string
		for i := range 3 {
			assigned = append(assigned, processTask(t, fmt.Sprintf("%s%d-%d", prefix, round, i), notes))
		}
		if len(assigned) > 6 {
			at := random.IntN(len(assigned))
			removed = append(removed, assigned[at].Id)
			assigned = append(assigned[:at:at], assigned[at+1:]...)
			at = random.IntN(len(assigned))
			assigned[at] = assigned[at].desire(shutdown)
		}
		s.assign(complete, set(), removed...)
		after(time.Duration(random.IntN(300)) * time.Millisecond)
		complete = false
		if what := random.IntN(3); what != 0 {
			w.end(syscall.SIGKILL)
			set()
			w = spawn(t, dataDir, address)
			s = d.await(t)
			s.welcome()
			complete = true
		} else {
			w.killPlugins(2)
		}
	}
	s.assign(complete, set())
	wrong := func() (all []string) {
		for _, task := range assigned {
			said := s.state(task.Id)
			if state := said.GetState(); task.DesiredState == running && state != running || task.DesiredState == shutdown && state < shutdown {
				all = append(all, fmt.Sprintf("%s, desired %s: %v", task.Id, task.DesiredState, said))
			}
		}
		return all
	}
	defer func() {
		for _, text := range wrong() {
			t.Error(text)
		}
	}()
	testwait.True(t, "all are as desired", func() bool { return len(wrong()) == 0 })
	want := 0
	for _, task := range assigned {
		if task.DesiredState == running {
			want++
		}
	}
	testwait.True(t, "what was withdrawn is gone", func() bool { return len(living(t, prefix)) == want })
	for id, pids := range living(t, prefix) {
		if len(pids) != 1 {
			t.Errorf("task %s has processes %v", id, pids)
		}
	}
	for id, n := range starts(t, notes) {
		if n != 1 {
			t.Errorf("task %s was started %d times", id, n)
		}
	}
	removeAll(t, s, prefix, assigned)
	w.end(syscall.SIGTERM)
}

// A host loses power: worker, plugins, tasks and what supervises them are gone at
// once, control groups too, and the machine comes back with another boot id. The
// worker says of each task what became of it, runs what is assigned to replace
// them, and doubles nothing.
func TestAHostThatLostPower(t *testing.T) {
	t.Parallel()
	d, address := listen(t)
	dataDir := t.TempDir()
	prefix := fmt.Sprintf("power%d-", rand.Uint64())
	killTasks(t, prefix)
	notes := filepath.Join(t.TempDir(), "notes")
	w := spawn(t, dataDir, address)
	s := d.await(t)
	nodeID := s.hello.GetNodeId()
	s.welcome()
	var tasks []assignment
	for i := range 5 {
		tasks = append(tasks, processTask(t, fmt.Sprint(prefix, i), notes))
	}
	parked := processTask(t, prefix+"parked", notes).desire(ready)
	s.assign(true, append(tasks, parked))
	testwait.True(t, "tasks run", func() bool { return s.allAre(running, tasks) && s.state(parked.Id).GetState() == ready })
	testwait.True(t, "tasks have begun", func() bool { return len(starts(t, notes)) == len(tasks) })

	w.killPlugins(2)
	w.end(syscall.SIGKILL)
	loseTasks(t, filepath.Join(dataDir, "executors", "process", "tasks"), prefix)

	w = spawn(t, dataDir, address)
	s = d.await(t)
	if got := s.hello.GetNodeId(); got != nodeID {
		t.Errorf("the node is %s and was %s", got, nodeID)
	}
	s.welcome()
	var known []assignment
	for _, task := range tasks {
		known = append(known, task.known(running))
	}
	// The first was replaced while the host was away.
	s.assign(true, append(known[1:], parked.known(ready)))
	testwait.True(t, "what ran is said to have failed", func() bool { return s.allAre(failed, tasks[1:]) })
	for _, task := range tasks[1:] {
		if got := s.state(task.Id); got.GetError() != "task: the machine was restarted while the task ran" {
			t.Errorf("%s: %v", task.Id, got)
		}
	}
	replacements := []assignment{processTask(t, prefix+"r1", notes), processTask(t, prefix+"r2", notes), parked.desire(running)}
	s.assign(false, append(replacements, tasks[1].desire(shutdown)), tasks[2].Id)
	testwait.True(t, "what replaces them runs", func() bool { return s.allAre(running, replacements) && len(living(t, prefix)) == len(replacements) })
	for id, n := range starts(t, notes) {
		if n != 1 {
			t.Errorf("task %s was started %d times", id, n)
		}
	}
	removeAll(t, s, prefix, append(tasks, replacements...))
	left := func() []string {
		all, err := filepath.Glob(filepath.Join(dataDir, "executors", "process", "tasks", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	testwait.True(t, "nothing is left on the disk", func() bool { return len(left()) == 0 })
	w.end(syscall.SIGTERM)
}

var bootID = regexp.MustCompile(`"boot":"[^"]*"`)

// loseTasks makes of the process tasks in a directory what a loss of power does:
// some of their files are of no length.
func loseTasks(t *testing.T, dir, prefix string) {
	t.Helper()
	supervisors, err := filepath.Glob(filepath.Join(dir, "*", "supervisor.json"))
	if err != nil || len(supervisors) == 0 {
		t.Fatalf("no supervisors in %s: %v", dir, err)
	}
	pid := regexp.MustCompile(`"pid":(\d+)`)
	for i, path := range supervisors {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(string(pid.FindSubmatch(content)[1]))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		testwait.True(t, "a supervisor is gone", func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n))
			return err != nil || bytes.Contains(stat, []byte(") Z "))
		})
		content = bootID.ReplaceAll(content, []byte(`"boot":"another"`))
		if i%2 == 1 {
			content = nil
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), "run.json"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The commands die with their supervisors; control groups are not on a disk.
	testwait.True(t, "the tasks are gone", func() bool {
		for _, pids := range living(t, prefix) {
			for _, pid := range pids {
				// That it is gone already is as well.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return len(living(t, prefix)) == 0
	})
	groups, err := filepath.Glob("/sys/fs/cgroup/*/muster/" + prefix + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups {
		if err := os.Remove(group); err != nil {
			t.Log(err)
		}
	}
}
