//go:build linux

package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// bench is an executor in this process, and one task of it.
type bench struct {
	*testing.T
	*process.Executor
	dir  string
	task *sdk.Task
	ref  sdk.Ref
}

func newBench(t *testing.T, spec *musterv1.TaskSpec) *bench {
	t.Helper()
	dir := t.TempDir()
	executor, err := process.New(process.Config{StateDir: dir, LogBytes: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("t%d", time.Now().UnixNano())
	b := &bench{T: t, Executor: executor, dir: dir, ref: sdk.Ref{TaskID: id}, task: &sdk.Task{
		Id: id, Name: "web.3." + id, ServiceId: "sid", ServiceName: "web", Slot: 3, NodeId: "n1", Spec: spec,
	}}
	t.Cleanup(func() {
		if err := b.Remove(context.Background(), b.ref); err != nil && !sdk.IsNotFound(err) {
			t.Errorf("Remove: %v", err)
		}
		if found := left(t, dir, id); len(found) > 0 {
			t.Errorf("there is left: %q", found)
		}
	})
	return b
}

func (b *bench) run() *sdk.Started {
	b.Helper()
	if _, err := b.Prepare(b.Context(), b.task, nil); err != nil {
		b.Fatalf("Prepare: %v", err)
	}
	started, err := b.Start(b.Context(), b.task, nil)
	if err != nil {
		b.Fatalf("Start: %v", err)
	}
	return started
}

func (b *bench) wait() *sdk.Ended {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	ended, err := b.Wait(ctx, b.ref)
	if err != nil {
		b.Fatalf("Wait: %v", err)
	}
	return ended
}

// output returns the lines that the task has written.
func (b *bench) output() []string {
	b.Helper()
	var lines []string
	if err := b.Logs(b.Context(), b.ref, sdk.LogOptions{}, func(line sdk.LogLine) error {
		lines = append(lines, string(line.Data))
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return lines
}

// line waits for a line that the task writes.
func (b *bench) line(text string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	found := errors.New("found")
	err := b.Logs(ctx, b.ref, sdk.LogOptions{Follow: true}, func(line sdk.LogLine) error {
		if string(line.Data) == text {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		b.Fatalf("the task does not write %q: %v, %q", text, err, b.output())
	}
}

// supervisor returns the process that supervises the task.
func (b *bench) supervisor() proc.Identity {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join(b.dir, "tasks", b.ref.TaskID, "supervisor.json"))
	if err != nil {
		b.Fatal(err)
	}
	var id proc.Identity
	if err := json.Unmarshal(raw, &id); err != nil {
		b.Fatal(err)
	}
	return id
}

func TestTheCommandsSurroundings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	taskSpec := spec(t, map[string]any{
		"command": []any{"sh", "-c", "pwd; echo $0 $1; env; ls -l /proc/self/fd | wc -l; cat"},
		"args":    []any{"zero", "one"}, "dir": dir, "env": []any{"A=b c", "MUSTER_TASK_ID=stolen", "HOME=/x", "A=last"},
	})
	b := newBench(t, taskSpec)
	b.task.Ports = []*sdk.Port{
		{TargetPort: 80, PublishedPort: 8080, PublishMode: musterv1.PortConfig_HOST},
		{TargetPort: 90, PublishMode: musterv1.PortConfig_HOST},
		{TargetPort: 70, PublishedPort: 7070, PublishMode: musterv1.PortConfig_INGRESS},
	}
	started := b.run()
	if len(started.Ports) != 2 || started.Ports[0].GetPublishedPort() != 8080 || started.Ports[1].GetPublishedPort() < 1024 {
		t.Fatalf("ports = %v, want 8080 and one that was chosen", started.Ports)
	}
	if ended := b.wait(); ended.Status.GetExitCode() != 0 {
		t.Errorf("exit code = %d", ended.Status.GetExitCode())
	}
	got := b.output()
	if len(got) < 3 || got[0] != dir || got[1] != "zero one" {
		t.Fatalf("output = %q", got)
	}
	for _, want := range []string{
		"A=last", "HOME=/x", "MUSTER_TASK_ID=" + b.ref.TaskID, "MUSTER_TASK_NAME=" + b.task.Name, "MUSTER_TASK_SLOT=3",
		"MUSTER_SERVICE_NAME=web", "MUSTER_NODE_ID=n1", "MUSTER_PORT_80=8080", fmt.Sprintf("MUSTER_PORT_90=%d", started.Ports[1].GetPublishedPort()),
		// The three standard files, ls's own, and its line of a total.
		"5",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("output lacks %q: %q", want, got)
		}
	}
	for _, line := range got {
		for _, unwanted := range []string{"GO", "A=b", "MUSTER_PORT_70", "MUSTER_STATE_DIR", "USER="} {
			if strings.HasPrefix(line, unwanted) {
				t.Errorf("the environment holds %q", line)
			}
		}
	}
}

func TestTheCommandLeadsASessionOfItsOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "sleep 1000 & exec sleep 1000"}))
	pid := int(b.run().Status.GetPid())
	stat, err := proc.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	supervisor, err := proc.ReadStat(b.supervisor().PID)
	if err != nil {
		t.Fatal(err)
	}
	if stat.Session != pid || stat.PGRP != pid || stat.PPID != supervisor.PID {
		t.Errorf("the command = %+v, want it to lead a session under its supervisor %d", stat, supervisor.PID)
	}
	if supervisor.Session != supervisor.PID {
		t.Errorf("the supervisor = %+v, want it to lead a session", supervisor)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for shell, want := range map[string]int32{"exit 42": 42, "kill -USR2 $$": 128 + 12, "kill -KILL $$": 128 + 9, "nosuchcommand": 127} {
		b := newBench(t, spec(t, map[string]any{"shell": shell}))
		b.run()
		if got := b.wait(); got.Status.GetExitCode() != want || got.Error != "" {
			t.Errorf("%s: %+v, want exit code %d", shell, got, want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]string{"SIGUSR2": "SIGUSR2", "usr2": "USR2", "12": "12"} {
		b := newBench(t, spec(t, map[string]any{"shell": "trap 'exit 33' USR2; echo ready; while :; do sleep 0.05; done", "stopSignal": signal, "stopGracePeriod": "50s"}))
		b.run()
		b.line("ready")
		got, err := b.Shutdown(t.Context(), b.ref, nil)
		if err != nil || got.GetExitCode() != 33 {
			t.Errorf("%s: Shutdown = %v, %v; want exit code 33", name, got, err)
		}
	}
}

// What a command starts ends with it, however far it has run away.
func TestNothingOutlivesTheCommand(t *testing.T) {
	t.Parallel()
	runaways := "setsid sh -c 'trap \"\" TERM HUP; (sleep 1000 &) ; sleep 1000' & (setsid sleep 1000 &) ; "
	for name, test := range map[string]struct {
		shell string
		end   func(*bench) error
	}{
		"by itself": {runaways + "echo ready; sleep 0.2", func(b *bench) error { return nil }},
		"by shutdown": {runaways + "echo ready; exec sleep 1000", func(b *bench) error {
			_, err := b.Shutdown(b.Context(), b.ref, nil)
			return err
		}},
		"by terminate": {runaways + "echo ready; exec sleep 1000", func(b *bench) error {
			_, err := b.Terminate(b.Context(), b.ref)
			return err
		}},
	} {
		b := newBench(t, spec(t, map[string]any{"shell": test.shell}))
		b.run()
		b.line("ready")
		if err := test.end(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b.wait()
		if found := members(t, b.ref.TaskID); len(found) > 0 {
			t.Errorf("%s: there still run %v", name, found)
		}
	}
}

// A long-lived command may leave any number of orphans behind; they are not to
// pile up as zombies.
func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "for i in 1 2 3 4 5 6 7 8 9; do (true &) ; done; echo ready; exec sleep 1000"}))
	b.run()
	b.line("ready")
	testwait.Within(t, 2*time.Minute, "the command is alone beneath its supervisor", func(context.Context) error {
		children, err := proc.Descendants(b.supervisor().PID)
		if err == nil && len(children) != 1 {
			err = fmt.Errorf("there are %v", children)
		}
		return err
	})
}

// If the supervisor is killed, so is the task, and that is told.
func TestAKilledSupervisorIsTold(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "setsid sleep 1000 & (setsid sleep 1000 &) ; echo ready; exec sleep 1000"}))
	b.run()
	b.line("ready")
	if err := proc.Kill(b.supervisor()); err != nil {
		t.Fatal(err)
	}
	ended := b.wait()
	if ended.Error == "" || ended.Status.GetExitCode() == 0 {
		t.Errorf("Wait = %+v, want an error and no success", ended)
	}
	if found := members(t, b.ref.TaskID); len(found) > 0 {
		t.Errorf("there still run %v", found)
	}
	again, err := b.Start(t.Context(), b.task, nil)
	if err != nil || again.Status.GetExitCode() == 0 {
		t.Errorf("Start of a task that was lost = %v, %v", again, err)
	}
	if listed, err := b.List(t.Context(), "n1"); err != nil || len(listed) != 1 || listed[0].State != sdk.Exited {
		t.Errorf("List = %v, %v", listed, err)
	}
}

func TestAHaltedSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "exec sleep 1000"}))
	b.SetKillTime(300 * time.Millisecond)
	b.run()
	h, err := proc.Open(b.supervisor())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Signal(unix.SIGSTOP), h.Close()); err != nil {
		t.Fatal(err)
	}
	status, err := b.Terminate(t.Context(), b.ref)
	if err != nil || status.GetExitCode() != 128+9 {
		t.Errorf("Terminate = %v, %v; want exit code 137", status, err)
	}
}

func TestWhatCannotStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("\x7fELF, so to speak"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, payload := range map[string]map[string]any{
		"no program":   {"command": []any{"no-such-program"}},
		"no file":      {"command": []any{"/no/such/program"}},
		"no directory": {"shell": "true", "dir": "/no/such/dir"},
		"no user":      {"shell": "true", "user": "no-such-user"},
		"no group":     {"shell": "true", "user": "root:no-such-group"},
	} {
		b := newBench(t, spec(t, payload))
		_, err := b.Prepare(t.Context(), b.task, nil)
		var fault *wire.Error
		if !errors.As(err, &fault) || fault.Temporary || fault.Blame != wire.BlameNode {
			t.Errorf("%s: Prepare = %v, want the node's fault", name, err)
		}
	}
	b := newBench(t, spec(t, map[string]any{"command": []any{broken}}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := b.Start(t.Context(), b.task, nil)
		var fault *wire.Error
		if !errors.As(err, &fault) || fault.Temporary || !strings.Contains(err.Error(), "exec format error") {
			t.Errorf("Start of a broken program = %v", err)
		}
	}
}

func TestUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		b := newBench(t, spec(t, map[string]any{"shell": "true", "user": "0"}))
		if _, err := b.Prepare(t.Context(), b.task, nil); err == nil {
			t.Error("an executor that is not root takes a task of root")
		}
		return
	}
	for user, want := range map[string]string{"nobody": "65534 65534", "12345": "12345 12345", "12345:7": "12345 7", "nobody:root": "65534 0"} {
		if user != "12345" && user != "12345:7" && exec.CommandContext(t.Context(), "id", "nobody").Run() != nil {
			continue
		}
		b := newBench(t, spec(t, map[string]any{"shell": "echo $(id -u) $(id -g)", "user": user}))
		b.run()
		b.wait()
		if got := b.output(); len(got) != 1 || got[0] != want {
			t.Errorf("user %s: %q, want %q", user, got, want)
		}
	}
}

func TestLogsKeepToTheirBound(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"}))
	b.run()
	b.wait()
	got := b.output()
	if len(got) < 1000 || got[len(got)-1] != "line 19999" {
		t.Errorf("of 20000 lines %d are kept", len(got))
	}
	for _, name := range []string{"log", "log.1"} {
		if info, err := os.Stat(filepath.Join(b.dir, "tasks", b.ref.TaskID, name)); err != nil || info.Size() > 100_000 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// limits returns the limits that this machine lets the executor keep.
func limits(t *testing.T, b *bench) string {
	t.Helper()
	description, err := b.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(description.GetCapabilities(), " ")
}

func TestLimits(t *testing.T) {
	t.Parallel()
	limited := func(payload map[string]any, limits *musterv1.Limits) *musterv1.TaskSpec {
		spec := spec(t, payload)
		spec.Resources = &musterv1.ResourceRequirements{Limits: limits}
		return spec
	}
	for name, test := range map[string]struct {
		capability string
		limits     *musterv1.Limits
		shell      string
		check      func(*bench, *sdk.Ended) bool
	}{
		"memory": {
			"limits.memory", &musterv1.Limits{MemoryBytes: 16 << 20}, "head -c 100000000 /dev/zero | tail >/dev/null",
			func(_ *bench, ended *sdk.Ended) bool { return ended.Status.GetOomKilled() },
		},
		"pids": {
			"limits.pids", &musterv1.Limits{Pids: 3}, "for i in 1 2 3 4 5 6; do sleep 1000 & done; echo all",
			func(b *bench, _ *sdk.Ended) bool { return !slices.Contains(b.output(), "all") },
		},
		"cpu": {
			"limits.cpu", &musterv1.Limits{NanoCpus: 100_000_000}, "timeout 1 sh -c 'while :; do :; done'; cat /proc/self/cgroup; times",
			func(b *bench, _ *sdk.Ended) bool {
				// A tenth of a processor for a second.
				got := b.output()
				return strings.HasPrefix(got[len(got)-1], "0m0.")
			},
		},
	} {
		b := newBench(t, limited(map[string]any{"shell": test.shell}, test.limits))
		if !strings.Contains(limits(t, b), test.capability) {
			_, err := b.Prepare(t.Context(), b.task, nil)
			var fault *wire.Error
			if !errors.As(err, &fault) || fault.Blame != wire.BlameNode || fault.Temporary {
				t.Errorf("%s: Prepare where it cannot be limited = %v, want the node's fault", name, err)
			}
			continue
		}
		b.run()
		ended := b.wait()
		if !test.check(b, ended) {
			t.Errorf("%s: the limit does not hold: %v, %q", name, ended, b.output())
		}
	}
}

// The supervisor is there once for each task, so it must be small.
func TestTheSupervisorIsSmall(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "executor")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/muster-executor-process")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	stateDir := t.TempDir()
	plugin := startProgram(t, program, stateDir)
	task := &sdk.Task{Id: fmt.Sprintf("t%d", time.Now().UnixNano()), NodeId: "n1", Spec: spec(t, map[string]any{"shell": "exec sleep 1000"})}
	plugin.run(task)
	raw, err := os.ReadFile(filepath.Join(stateDir, "tasks", task.Id, "supervisor.json"))
	if err != nil {
		t.Fatal(err)
	}
	var id proc.Identity
	if err := json.Unmarshal(raw, &id); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if bytes.HasPrefix(line, []byte("Rss")) || bytes.HasPrefix(line, []byte("VmRSS")) {
			t.Logf("%s", bytes.TrimSpace(line))
		}
		// What is of the program's file is shared by all of them.
		var anonymous int
		if n, err := fmt.Sscanf(string(line), "RssAnon: %d kB", &anonymous); n == 1 && err == nil && anonymous > 6<<10 {
			t.Errorf("the supervisor takes %d KiB of its own, want at most 6144", anonymous)
		}
	}
}
