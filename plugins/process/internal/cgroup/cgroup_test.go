//go:build linux

package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestNeeds(t *testing.T) {
	t.Parallel()
	if got := (Limits{NanoCPUs: 1, PIDs: 1}).Needs(); !slices.Equal(got, []string{CPU, PIDs}) {
		t.Errorf("Needs = %v", got)
	}
	none := &System{parents: map[string]string{PIDs: "/x"}}
	if got := none.Lacking(Limits{NanoCPUs: 1, MemoryBytes: 1, PIDs: 1}); !slices.Equal(got, []string{CPU, Memory}) {
		t.Errorf("Lacking = %v", got)
	}
	if _, err := none.Create("t", Limits{MemoryBytes: 1}); err == nil {
		t.Error("a limit that cannot be set is passed over in silence")
	}
	if found := Detect(t.TempDir()); len(found.Controllers()) != 0 {
		t.Errorf("in an empty directory there are the controllers %v", found.Controllers())
	}
}

// What is written to limit a group, in both versions' files.
func TestLimitFiles(t *testing.T) {
	t.Parallel()
	limits := Limits{NanoCPUs: 1_500_000_000, MemoryBytes: 64 << 20, PIDs: 7}
	for name, test := range map[string]struct {
		group func(dir string) *Group
		want  map[string]string
	}{
		"version 2": {
			func(dir string) *Group { return &Group{unified: dir} },
			map[string]string{"cpu.max": "150000", "memory.max": "67108864", "pids.max": "7"},
		},
		"version 1": {
			func(dir string) *Group { return &Group{separate: map[string]string{CPU: dir, Memory: dir, PIDs: dir}} },
			map[string]string{"cpu.cfs_quota_us": "150000", "memory.limit_in_bytes": "67108864", "pids.max": "7"},
		},
	} {
		dir := t.TempDir()
		// In a hierarchy the files are there; only here they have to be made.
		for file := range test.want {
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		group := test.group(dir)
		if err := group.limit(limits, CPU, Memory, PIDs); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for file, want := range test.want {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %s = %q, %v; want %q", name, file, got, err, want)
			}
		}
		if err := group.limit(Limits{}, CPU, Memory, PIDs); err != nil {
			t.Errorf("%s: no limits: %v", name, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cpu.max"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&Group{unified: dir}).limit(Limits{NanoCPUs: 1}, CPU); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "cpu.max")); string(got) != "1000" {
		t.Errorf("the least share of a processor = %q, want the kernel's least", got)
	}
}

func TestWhatTheKernelCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for file, content := range map[string]string{
		"memory.events":         "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
		"memory.current":        "4096\n",
		"cpu.stat":              "usage_usec 1500\nuser_usec 1000\n",
		"memory.oom_control":    "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
		"memory.usage_in_bytes": "8192\n",
		"cgroup.procs":          "12\n\n34\n0\nx\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unified := &Group{unified: dir}
	memory, counted := unified.Memory()
	cpu, timed := unified.CPU()
	if !unified.OOMKilled() || !counted || memory != 4096 || !timed || cpu != 1500*time.Microsecond {
		t.Errorf("version 2: %t, %d, %s", unified.OOMKilled(), memory, cpu)
	}
	if pids, err := unified.Processes(); err != nil || !slices.Equal(pids, []int{12, 34}) {
		t.Errorf("Processes = %v, %v", pids, err)
	}
	separate := &Group{separate: map[string]string{Memory: dir}}
	if memory, counted := separate.Memory(); separate.OOMKilled() || !counted || memory != 8192 {
		t.Errorf("version 1: %t, %d", separate.OOMKilled(), memory)
	}
	gone := &Group{unified: filepath.Join(dir, "gone")}
	if pids, err := gone.Processes(); err != nil || len(pids) != 0 || gone.Kill() || gone.OOMKilled() {
		t.Errorf("of a group that is gone there are %v, %v", pids, err)
	}
}

// A group of this machine's, where it has any: a process in it is found, killed,
// and the group goes.
func TestAGroupOfThisMachine(t *testing.T) {
	t.Parallel()
	system := Detect(DefaultRoot)
	limits := Limits{}
	if slices.Contains(system.Controllers(), PIDs) {
		limits.PIDs = 5
	}
	name := "test-" + strings.ReplaceAll(t.Name(), "/", "-")
	group, err := system.Create(name, limits)
	if err != nil {
		t.Fatal(err)
	}
	dirs := group.Dirs()
	if again := Reopen(dirs); !slices.Equal(again.Dirs(), dirs) {
		t.Errorf("Reopen(%v) has %v", dirs, again.Dirs())
	}
	if found := system.Find(name); !slices.Equal(found.Dirs(), dirs) {
		t.Errorf("Find = %v, want %v", found.Dirs(), dirs)
	}
	if len(dirs) > 0 {
		cmd := exec.CommandContext(t.Context(), "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
				t.Errorf("enter %s: %v", dir, err)
			}
		}
		if pids, err := group.Processes(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
			t.Errorf("Processes = %v, %v; want %d", pids, err, cmd.Process.Pid)
		}
		if !group.Kill() {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Error("the killed process ended well")
		}
	}
	if err := group.Remove(); err != nil {
		t.Error(err)
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if err := group.Remove(); err != nil {
		t.Errorf("Remove of what is gone: %v", err)
	}
}
