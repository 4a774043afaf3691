//go:build linux

package taskdir_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	testdisk "github.com/musterhq/muster/test/kit/disk"
)

func open(t *testing.T) taskdir.Root {
	t.Helper()
	root := taskdir.Root(t.TempDir())
	if err := root.Open(); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestATaskFromBeginToEnd(t *testing.T) {
	t.Parallel()
	root := open(t)
	spec := taskdir.Spec{ID: "t1", NodeID: "n1", Path: "/bin/true", Args: []string{"true"}, Grace: time.Second, LogMax: 5}
	for range 2 {
		if err := root.Create(spec); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := root.Find("t1")
	if err != nil {
		t.Fatal(err)
	}
	spec.Version = taskdir.Version
	if got, err := dir.Spec(); err != nil || !cmp.Equal(spec, got, cmpopts.EquateEmpty()) {
		t.Errorf("Spec = %+v, %v; want %+v", got, err, spec)
	}
	run, runErr := dir.Run()
	exit, exitErr := dir.Exit()
	supervisor, supervisorErr := dir.Supervisor()
	begun, begunErr := dir.Begun()
	if err := errors.Join(runErr, exitErr, supervisorErr, begunErr); err != nil || run != nil || exit != nil || supervisor != nil || begun {
		t.Errorf("a new task: %v, %v, %v, %t, %v", run, exit, supervisor, begun, err)
	}
	if err := dir.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := dir.Begin(); err == nil {
		t.Error("a task can be begun twice")
	}
	id := proc.Identity{PID: 1, Start: 2, Boot: "b"}
	now := time.Now().UTC()
	wantRun, wantExit := taskdir.Run{Command: id, At: now, Cgroups: []string{"/x"}}, taskdir.Exit{At: now, Code: 3, Lost: "so"}
	if err := errors.Join(dir.SetSupervisor(id), dir.SetRun(wantRun), dir.SetExit(wantExit)); err != nil {
		t.Fatal(err)
	}
	run, runErr = dir.Run()
	exit, exitErr = dir.Exit()
	supervisor, supervisorErr = dir.Supervisor()
	if err := errors.Join(runErr, exitErr, supervisorErr); err != nil || !cmp.Equal(run, &wantRun) || !cmp.Equal(exit, &wantExit) || *supervisor != id {
		t.Errorf("a task that ended: %v, %v, %v, %v", run, exit, supervisor, err)
	}
	if dirs, err := root.List(); err != nil || len(dirs) != 1 || dirs[0] != dir {
		t.Errorf("List = %v, %v", dirs, err)
	}
	for range 2 {
		if err := root.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := root.Find("t1"); !errors.Is(err, taskdir.ErrNotFound) {
		t.Errorf("Find of a removed task = %v", err)
	}
	if _, err := dir.Spec(); !errors.Is(err, taskdir.ErrNotFound) {
		t.Errorf("Spec of a removed task = %v", err)
	}
	if _, err := dir.Locked(); !errors.Is(err, taskdir.ErrNotFound) {
		t.Errorf("Locked of a removed task = %v", err)
	}
}

// A command writes from the moment it is started, and may have filled the disk
// before its start is recorded.
func TestAFullDiskTakesWhatRoomWasReservedFor(t *testing.T) {
	t.Parallel()
	root := taskdir.Root(testdisk.Small(t, 1<<20))
	if err := errors.Join(root.Open(), root.Create(taskdir.Spec{ID: "t1"})); err != nil {
		t.Fatal(err)
	}
	dir, err := root.Find("t1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dir.Reserve(), testdisk.Fill(filepath.Join(string(root), "fill"))); err != nil {
		t.Fatal(err)
	}
	id := proc.Identity{PID: 1, Start: 2, Boot: "b"}
	if err := dir.SetSupervisor(id); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("SetSupervisor on a full disk = %v", err)
	}
	wantRun, wantExit := taskdir.Run{Command: id, Cgroups: []string{"/x"}}, taskdir.Exit{Code: 3, Lost: "so"}
	if err := errors.Join(dir.SetRun(wantRun), dir.SetExit(wantExit)); err != nil {
		t.Fatal(err)
	}
	run, runErr := dir.Run()
	exit, exitErr := dir.Exit()
	if err := errors.Join(runErr, exitErr); err != nil || !cmp.Equal(run, &wantRun) || !cmp.Equal(exit, &wantExit) {
		t.Errorf("a task that ended on a full disk: %v, %v, %v", run, exit, err)
	}
}

func TestTheLockIsOnesAlone(t *testing.T) {
	t.Parallel()
	root := open(t)
	if err := root.Create(taskdir.Spec{ID: "t1"}); err != nil {
		t.Fatal(err)
	}
	dir, err := root.Find("t1")
	if err != nil {
		t.Fatal(err)
	}
	var holders, taken atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				lock, err := dir.Lock()
				if err != nil {
					t.Error(err)
					return
				}
				if lock == nil {
					continue
				}
				taken.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				if held, err := dir.Locked(); err != nil || !held {
					t.Errorf("Locked while it is held = %t, %v", held, err)
				}
				holders.Add(-1)
				if err := lock.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if held, err := dir.Locked(); err != nil || held || taken.Load() == 0 {
		t.Errorf("after all Locked = %t, %v; it was taken %d times", held, err, taken.Load())
	}
}

// What a process that was killed left half done is gone when the next one opens
// the root, and is no task in between.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	root := open(t)
	for _, dir := range []string{"new/t1", "trash/t2-1/task"} {
		if err := os.MkdirAll(filepath.Join(string(root), dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(string(root), dir, "spec.json"), []byte(`{`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if dirs, err := root.List(); err != nil || len(dirs) != 0 {
		t.Errorf("List = %v, %v", dirs, err)
	}
	if err := root.Create(taskdir.Spec{ID: "t1"}); err != nil {
		t.Errorf("Create over a half-made directory: %v", err)
	}
	if err := root.Open(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"new", "trash"} {
		if left, err := os.ReadDir(filepath.Join(string(root), dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
	if _, err := root.Find("t1"); err != nil {
		t.Errorf("Find = %v", err)
	}
}

func TestIDsAreNoPaths(t *testing.T) {
	t.Parallel()
	root := open(t)
	for _, id := range []string{"", "..", "../t", "a/b", ".t", "t\x00", "t\n"} {
		if err := root.Create(taskdir.Spec{ID: id}); err == nil {
			t.Errorf("Create takes the id %q", id)
		}
		if _, err := root.Find(id); !errors.Is(err, taskdir.ErrNotFound) {
			t.Errorf("Find(%q) = %v", id, err)
		}
	}
}

func TestAnotherVersionIsNotRead(t *testing.T) {
	t.Parallel()
	root := open(t)
	if err := root.Create(taskdir.Spec{ID: "t1"}); err != nil {
		t.Fatal(err)
	}
	dir, err := root.Find("t1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(string(dir), "spec.json"), []byte(`{"v":99,"id":"t1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if spec, err := dir.Spec(); err == nil {
		t.Errorf("Spec of version 99 = %+v", spec)
	}
}
