//go:build linux

package process_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/sdk"
	testdisk "github.com/musterhq/muster/test/kit/disk"
)

// losePower makes of a task what a machine that loses power and starts again
// makes of it: all its processes are gone at once, and what the files say of them
// is of another boot.
func (b *bench) losePower() {
	b.Helper()
	supervisor := b.supervisor()
	if err := proc.Kill(supervisor); err != nil {
		b.Fatal(err)
	}
	for len(members(b, b.ref.TaskID)) > 0 {
		for _, stat := range members(b, b.ref.TaskID) {
			// That it is gone already is as well.
			_ = unix.Kill(stat.PID, unix.SIGKILL)
		}
	}
	b.freed()
	supervisor.Boot = "00000000-0000-0000-0000-000000000000"
	raw, err := json.Marshal(supervisor)
	if err != nil {
		b.Fatal(err)
	}
	b.spoil("supervisor.json", raw)
}

// freed returns when the task's supervisor is gone.
func (b *bench) freed() {
	b.Helper()
	executor := b.next()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	if _, err := executor.Wait(ctx, b.ref); ctx.Err() != nil {
		b.Fatalf("the supervisor does not die: %v", err)
	}
	// That the task was lost has been found out before its time.
	if err := os.Remove(b.file("exit.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, "tasks", b.ref.TaskID, name) }

// spoil puts something in a file's place; nil means that it is gone.
func (b *bench) spoil(name string, content []byte) {
	b.Helper()
	err := os.Remove(b.file(name))
	if content != nil {
		err = os.WriteFile(b.file(name), content, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
}

// next returns the executor's next process.
func (b *bench) next() *process.Executor {
	b.Helper()
	executor, err := process.New(process.Config{StateDir: b.dir})
	if err != nil {
		b.Fatal(err)
	}
	return executor
}

// A machine that loses power leaves tasks whose files are there, or are of no
// length, or are gone: nothing was forced to the disk. Whatever it is, what ran
// is reported as lost, and nothing stays that cannot be removed.
func TestAMachineThatLostPower(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]map[string][]byte{
		"all files":           {},
		"empty supervisor":    {"supervisor.json": {}},
		"empty run":           {"run.json": {}},
		"empty exit":          {"exit.json": {}},
		"half an exit":        {"exit.json": []byte(`{"at":"2026-1`)},
		"empty spec":          {"spec.json": {}},
		"no begun":            {"begun": nil},
		"no begun and no run": {"begun": nil, "run.json": nil},
		"all empty":           {"spec.json": {}, "run.json": {}, "supervisor.json": {}, "exit.json": {}},
		"zeroes":              {"spec.json": make([]byte, 100), "run.json": make([]byte, 100), "supervisor.json": make([]byte, 100)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, spec(t, map[string]any{"shell": "echo up; exec sleep 1000"}))
			b.run()
			b.line("up")
			b.losePower()
			for name, content := range left {
				b.spoil(name, content)
			}
			b.Executor = b.next()
			ended := b.wait()
			if ended.Error != "the machine was restarted while the task ran" || ended.Status.GetExitCode() != 137 {
				t.Errorf("Wait says %v", ended)
			}
			listed, err := b.List(t.Context(), "n1")
			if err != nil || len(listed) != 1 || listed[0].TaskID != b.ref.TaskID || listed[0].State != sdk.Exited {
				t.Errorf("List says %v, %v", listed, err)
			}
			if _, err := b.Start(t.Context(), b.task, nil); err != nil && !strings.Contains(err.Error(), "machine was restarted") {
				t.Errorf("Start says %v", err)
			}
			if n := running(t, b.ref.TaskID); n != 0 {
				t.Errorf("%d of the task run again", n)
			}
			if _, err := b.Shutdown(t.Context(), b.ref, nil); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if again := b.wait(); again.Error != ended.Error || !again.At.Equal(ended.At) {
				t.Errorf("Wait says %v, and before %v", again, ended)
			}
			if err := b.Remove(t.Context(), b.ref); err != nil {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}

// A task that was prepared and not started can be started after all, whatever
// became of its files.
func TestAMachineThatLostPowerBetweenPrepareAndStart(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{"all files": nil, "empty spec": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, spec(t, map[string]any{"shell": "echo up; exec sleep 1000"}))
			if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
				t.Fatal(err)
			}
			if content != nil {
				b.spoil("spec.json", content)
			}
			b.Executor = b.next()
			listed, err := b.List(t.Context(), "n1")
			if err != nil || len(listed) != 1 || listed[0].State != sdk.Prepared {
				t.Errorf("List says %v, %v", listed, err)
			}
			b.run()
			b.line("up")
			if n := running(t, b.ref.TaskID); n != 1 {
				t.Errorf("%d of the task run, want 1", n)
			}
		})
	}
}

// A task that writes until the disk is full runs on, others beside it too; how
// they end is known, they can be stopped and removed, and the log says that it
// has a gap.
func TestAFullDiskEndsNoTask(t *testing.T) {
	t.Parallel()
	dir := testdisk.Small(t, 2<<20)
	executor, err := process.New(process.Config{StateDir: dir, LogBytes: 100 << 20})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(name, shell string) *bench {
		id := fmt.Sprintf("%s%d", name, time.Now().UnixNano())
		b := &bench{T: t, Executor: executor, dir: dir, ref: sdk.Ref{TaskID: id}, task: &sdk.Task{
			Id: id, Name: "web.3." + id, NodeId: "n1", Spec: spec(t, map[string]any{"shell": shell}),
		}}
		b.run()
		return b
	}
	flag := filepath.Join(t.TempDir(), "flag")
	waitFor := "while ! [ -e " + flag + " ]; do sleep 0.05; done; "
	ends := begin("ends", waitFor+"echo last words; exit 7")
	stays := begin("stays", "exec sleep 1000")
	lost := begin("lost", "exec sleep 1000")
	chatty := begin("chatty", "while ! [ -e "+flag+" ]; do echo "+strings.Repeat("x", 1000)+"; done; exec sleep 1000")
	var room unix.Statfs_t
	for room.Bavail = 1; room.Bavail > 0; {
		if err := unix.Statfs(dir, &room); err != nil {
			t.Fatal(err)
		}
	}
	if n := running(t, chatty.ref.TaskID); n != 1 {
		t.Errorf("%d of the task that filled the disk run", n)
	}
	b := &sdk.Task{Id: "more", NodeId: "n1", Spec: spec(t, map[string]any{"shell": "true"})}
	if _, err := executor.Prepare(t.Context(), b, nil); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Prepare on a full disk: %v", err)
	}
	if err := proc.Kill(lost.supervisor()); err != nil {
		t.Fatal(err)
	}
	if got := lost.wait(); !strings.Contains(got.Error, "supervisor was killed") {
		t.Errorf("the lost task: %v", got)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ends.wait(); got.Status.GetExitCode() != 7 || got.Error != "" {
		t.Errorf("the task that ended: %v", got)
	}
	if _, err := stays.Shutdown(t.Context(), stays.ref, nil); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	for _, b := range []*bench{ends, stays, lost, chatty} {
		if err := executor.Remove(t.Context(), b.ref); err != nil {
			t.Errorf("Remove %s: %v", b.ref.TaskID, err)
		}
		if found := left(t, dir, b.ref.TaskID); len(found) > 0 {
			t.Errorf("there is left: %q", found)
		}
	}
	if _, err := executor.Prepare(t.Context(), b, nil); err != nil {
		t.Errorf("Prepare when there is room again: %v", err)
	}
	if err := executor.Remove(t.Context(), sdk.Ref{TaskID: "more"}); err != nil {
		t.Errorf("Remove: %v", err)
	}
}
