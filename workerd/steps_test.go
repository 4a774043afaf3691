//go:build linux

package workerd_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	. "github.com/musterhq/muster/api/muster/v1"
	testwait "github.com/musterhq/muster/test/kit/wait"
	"github.com/musterhq/muster/workerd/taskdb"
)

// killPlugins kills the worker's plugins, of which there are so many.
func (p *ownProcess) killPlugins(want int) {
	p.t.Helper()
	var children []*process.Process
	testwait.True(p.t, "the plugins run", func() bool {
		worker, err := process.NewProcess(int32(p.cmd.Process.Pid))
		if err != nil {
			return false
		}
		children, err = worker.Children()
		return err == nil && len(children) == want
	})
	for _, child := range children {
		if err := syscall.Kill(int(child.Pid), syscall.SIGKILL); err != nil {
			p.t.Error(err)
		}
	}
}

// after returns once a little time has passed, for what cannot be seen from
// outside to have begun.
func after(span time.Duration) {
	timer := time.NewTimer(span)
	defer timer.Stop()
	<-timer.C
}

// step is a moment in a task's life.
type step struct {
	name    string
	script  map[string]any
	desired TaskState
	// reach brings the task to the step; without it that is what is reported.
	reach func(s *session, task assignment)
	at    TaskState
	// next is what the managers want then, and end what must become of it.
	next TaskState
	end  TaskState
}

// steps returns the moments at which a worker may be killed.
func steps() []step {
	const (
		preparing = TaskState_PREPARING
		starting  = TaskState_STARTING
	)
	return []step{
		{name: "preparing", script: map[string]any{"prepareDelay": "1s"}, desired: running, at: preparing, next: running, end: running},
		{name: "ready", desired: ready, at: ready, next: running, end: running},
		{name: "starting", script: map[string]any{"startDelay": "1s"}, desired: running, at: starting, next: running, end: running},
		{name: "running", desired: running, at: running, next: running, end: running},
		{
			name: "shutting down", script: map[string]any{"ignoreShutdown": true, "stopGracePeriod": "1s"}, desired: running, at: running,
			reach: func(s *session, task assignment) {
				s.assign(false, []assignment{task.desire(shutdown)})
				after(200 * time.Millisecond)
			},
			next: shutdown, end: shutdown,
		},
		{
			name: "ended", script: map[string]any{"runFor": "10ms", "exitCode": 3}, desired: running, at: failed, next: running, end: failed,
		},
		{
			name: "removing", script: map[string]any{"ignoreShutdown": true, "stopGracePeriod": "1s"}, desired: running, at: running,
			reach: func(s *session, task assignment) {
				s.assign(false, nil, task.Id)
				after(300 * time.Millisecond)
			},
		},
	}
}

// TestTasksContinueAfterKillAtEachStep kills worker and executor at each step of a
// task's life. The task then continues from there: it is started once, it reaches
// what is desired, and nothing of it is left when it is withdrawn.
func TestTasksContinueAfterKillAtEachStep(t *testing.T) {
	t.Parallel()
	for _, step := range steps() {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, t.TempDir())
				s := h.begin()
				s.welcome()
				task := nullTask("a", step.desired, step.script)
				s.assign(true, []assignment{task, nullTask("bystander", running, nil)})
				settle(100 * time.Millisecond)
				s.wantStates(map[string]TaskState{"a": step.at, "bystander": running})
				if step.reach != nil {
					step.reach(s, task)
				}
				before, bystander := startedAt(t, h.dataDir, "a"), held(t, h.dataDir)["bystander"]
				s = h.killAndBegin()
				s.welcome()
				want := []assignment{nullTask("bystander", running, nil).known(running)}
				states := map[string]TaskState{"bystander": running}
				if step.end != TaskState_TASK_STATE_UNSPECIFIED {
					want = append(want, task.desire(step.next).known(step.at))
					states["a"] = step.end
				}
				s.assign(true, want)
				settle(time.Minute)
				s.wantLast(states)
				now := startedAt(t, h.dataDir, "a")
				switch {
				case step.end == running && step.at < running:
					if now.IsZero() {
						t.Error("the task runs and was not started")
					}
				case step.end != TaskState_TASK_STATE_UNSPECIFIED && !now.Equal(before):
					t.Errorf("the task was started at %s, and then at %s", before, now)
				}
				if got := s.state("a"); step.end == running && got.GetError() != "" {
					t.Errorf("the task runs with the error %q", got.GetError())
				}
				if got := held(t, h.dataDir)["bystander"]; got != bystander {
					t.Errorf("the other task was touched: %s, and then %s", bystander, got)
				}
				s.assign(false, nil, "a", "bystander")
				settle(time.Minute)
				if left := held(t, h.dataDir); len(left) > 0 {
					t.Errorf("the executor still holds %v", left)
				}
				h.node.stop()
				wantForgotten(t, h.dataDir)
			})
		})
	}
}

// wantForgotten fails the test if a worker's database holds tasks that were not
// withdrawn.
func wantForgotten(t *testing.T, dataDir string) {
	t.Helper()
	db, contents, err := taskdb.Open(filepath.Join(dataDir, "tasks.db"))
	if err != nil {
		t.Fatal(err)
	}
	for id, record := range contents.Tasks {
		// The worker may have been stopped just before it forgot.
		if !record.Withdrawn {
			t.Errorf("the worker still remembers %s: %v", id, record)
		}
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// TestTasksContinueAfterKilledProcesses is the same with processes: it kills the
// worker, whose plugins notice that, or the plugins, which the worker starts again.
func TestTasksContinueAfterKilledProcesses(t *testing.T) {
	t.Parallel()
	for _, step := range steps() {
		for _, victim := range []string{"worker", "plugins"} {
			t.Run(step.name+"/"+victim, func(t *testing.T) {
				t.Parallel()
				d, address := listen(t)
				dataDir := t.TempDir()
				w := spawn(t, dataDir, address)
				s := d.await(t)
				s.welcome()
				task := nullTask("a", step.desired, step.script)
				s.assign(true, []assignment{task, nullTask("bystander", running, nil)})
				// A busy machine may see it when it has gone on already.
				testwait.True(t, "the task is at the step", func() bool { return s.state("a").GetState() >= step.at })
				testwait.True(t, "the other task runs", func() bool { return s.state("bystander").GetState() == running })
				if step.reach != nil {
					step.reach(s, task)
				}
				before := startedAt(t, dataDir, "a")
				bystander := held(t, dataDir)["bystander"]
				if victim != "worker" {
					w.killPlugins(2)
				}
				if victim != "plugins" {
					w.end(syscall.SIGKILL)
					w = spawn(t, dataDir, address)
					s = d.await(t)
					s.welcome()
				}
				want := []assignment{nullTask("bystander", running, nil).known(running)}
				if step.end != TaskState_TASK_STATE_UNSPECIFIED {
					want = append(want, task.desire(step.next).known(step.at))
				}
				// A worker that has its session still is told of changes alone.
				if s.assign(victim != "plugins", want); step.end != TaskState_TASK_STATE_UNSPECIFIED {
					testwait.True(t, "the task is as desired", func() bool { return s.state("a").GetState() == step.end })
				}
				testwait.True(t, "the other task is looked after", func() bool { return s.state("bystander").GetState() == running })
				if step.end == running && step.at < running {
					before = startedAt(t, dataDir, "a")
					if before.IsZero() {
						t.Error("the task runs and was not started")
					}
				} else if now := startedAt(t, dataDir, "a"); step.end != TaskState_TASK_STATE_UNSPECIFIED && !now.Equal(before) {
					t.Errorf("the task was started at %s, and then at %s", before, now)
				}
				if got := s.state("a"); step.end == running && got.GetError() != "" {
					testwait.True(t, "the error is withdrawn", func() bool { return s.state("a").GetError() == "" })
				}
				if got := held(t, dataDir)["bystander"]; got != bystander {
					t.Errorf("the other task was touched: %s, and then %s", bystander, got)
				}
				s.assign(false, nil, "a", "bystander")
				testwait.True(t, "nothing is left", func() bool { return len(held(t, dataDir)) == 0 })
				w.end(syscall.SIGTERM)
				wantForgotten(t, dataDir)
			})
		}
	}
}

// TestAcceptedTaskStartsAfterKill starts a worker on what one has left that was killed
// right after it had stored what was assigned, before it did anything.
func TestAcceptedTaskStartsAfterKill(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, t.TempDir())
		db, _, err := taskdb.Open(filepath.Join(h.dataDir, "tasks.db"))
		if err != nil {
			t.Fatal(err)
		}
		kept, gone := nullTask("kept", running, nil), nullTask("gone", running, nil)
		specs := map[string]*TaskSpec{string(kept.SpecDigest): kept.spec}
		for _, task := range []assignment{kept, gone} {
			if err := db.Apply(specs, taskdb.Change{ID: task.Id, Assigned: task.AssignedTask}); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.dataDir, "node-id"), []byte("node1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := h.begin()
		if got := s.hello.GetNodeId(); got != "node1" {
			t.Errorf("node id = %s", got)
		}
		s.welcome()
		s.assign(true, []assignment{kept})
		settle(time.Minute)
		s.wantRunning([]assignment{kept})
		if left := held(t, h.dataDir); len(left) != 1 {
			t.Errorf("the executor holds %v, want the assigned task alone", left)
		}
	})
}
