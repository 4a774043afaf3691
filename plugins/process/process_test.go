//go:build linux

package process_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/executortest"
	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func TestMain(m *testing.M) {
	process.Supervise(os.Args)
	// Under the race detector a process, and so every supervisor, would linger
	// for a second after its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	os.Exit(executortest.Main(m, func() (sdk.Executor, error) {
		return process.New(process.Config{Version: "test", StateDir: sdk.StateDir("")})
	}))
}

func spec(t testing.TB, payload map[string]any) *musterv1.TaskSpec {
	t.Helper()
	fields, err := structpb.NewStruct(payload)
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: process.Kind, Payload: fields}}}
}

// script writes its first arguments to standard output, the others to standard
// error, and behaves as asked.
const script = `%s
n=$1; shift
while [ $n -gt 0 ]; do printf '%%s\n' "$1"; shift; n=$((n-1)); done
for line in "$@"; do printf '%%s\n' "$line" >&2; done
%s`

func behaviorSpec(t testing.TB, behavior executortest.Behavior) *musterv1.TaskSpec {
	end := fmt.Sprintf("sleep %f; exit %d", behavior.RunFor.Seconds(), behavior.ExitCode)
	if behavior.Forever {
		end = "exec sleep 100000"
	}
	trap := ":"
	if behavior.Stubborn {
		trap = "trap '' TERM"
	}
	if len(behavior.Reads) > 0 {
		read := "cat " + strings.Join(behavior.Reads, " ")
		trap += fmt.Sprintf("; trap '%s' HUP", read)
		// A shell hears signals between its commands.
		end = read + "; while :; do sleep 0.05; done"
	}
	args := []any{fmt.Sprint(len(behavior.Says))}
	for _, line := range append(behavior.Says, behavior.Complains...) {
		args = append(args, line)
	}
	payload := map[string]any{"shell": fmt.Sprintf(script, trap, end), "args": args}
	if behavior.Grace > 0 {
		payload["stopGracePeriod"] = behavior.Grace.String()
	}
	if behavior.Sick {
		payload["healthcheck"] = map[string]any{
			"shell": fmt.Sprintf("echo '%s'; exit %d", conformance.SickOutput, conformance.SickExitCode), "interval": "500ms", "retries": 5,
		}
	}
	return spec(t, payload)
}

// members returns the processes of a task, found by their environment.
func members(t testing.TB, taskID string) []proc.Stat {
	t.Helper()
	all, err := proc.All()
	if err != nil {
		t.Error(err)
	}
	var found []proc.Stat
	for _, stat := range all {
		if !stat.Zombie() && proc.HasVariable(stat.PID, "MUSTER_TASK_ID="+taskID) {
			found = append(found, stat)
		}
	}
	return found
}

// running counts a task's commands: each leads a session.
func running(t testing.TB, taskID string) int {
	count := 0
	for _, stat := range members(t, taskID) {
		if stat.Session == stat.PID {
			count++
		}
	}
	return count
}

// left returns the files, processes and control groups that a task has left.
func left(t testing.TB, stateDir, taskID string) []string {
	t.Helper()
	var found []string
	for _, stat := range members(t, taskID) {
		found = append(found, fmt.Sprintf("process %d", stat.PID))
	}
	for _, root := range []string{stateDir, "/sys/fs/cgroup"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if strings.Contains(entry.Name(), taskID) {
				found = append(found, path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	return found
}

func TestConformance(t *testing.T) {
	executortest.Run(t, func(t *testing.T) *executortest.Harness {
		dir := t.TempDir()
		limited := spec(t, map[string]any{"shell": "true"})
		limited.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "n"}}
		return &executortest.Harness{
			Plugin: executortest.StartPlugin(t, wire.StateDirKey+"="+dir),
			Spec:   func(behavior executortest.Behavior) *musterv1.TaskSpec { return behaviorSpec(t, behavior) },
			Wrong: map[string]*musterv1.TaskSpec{
				"cmd":             spec(t, map[string]any{"cmd": "x"}),
				"command":         spec(t, map[string]any{}),
				"shell":           spec(t, map[string]any{"command": []any{"true"}, "shell": "true"}),
				"env[1]":          spec(t, map[string]any{"shell": "true", "env": []any{"A=b", "C"}}),
				"dir":             spec(t, map[string]any{"shell": "true", "dir": "tmp"}),
				"stopSignal":      spec(t, map[string]any{"shell": "true", "stopSignal": "SIGNOT"}),
				"stopGracePeriod": spec(t, map[string]any{"shell": "true", "stopGracePeriod": "-1s"}),
				"healthcheck":     spec(t, map[string]any{"shell": "true", "healthcheck": map[string]any{"shell": "true", "tcp": 80}}),
				"networks":        limited,
				"generic":         {Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "x"}}},
			},
			Running: func(taskID string) int { return running(t, taskID) },
			Left:    func(taskID string) []string { return left(t, dir, taskID) },
		}
	})
}

// realPlugin is the executor that ships, as a process.
type realPlugin struct {
	*testing.T
	*executortest.Plugin
}

func startProgram(t *testing.T, program, stateDir string) *realPlugin {
	t.Helper()
	return &realPlugin{T: t, Plugin: executortest.StartProgram(t, program, wire.StateDirKey+"="+stateDir)}
}

// run starts a task that is removed with the test.
func (p *realPlugin) run(task *sdk.Task) {
	p.Helper()
	p.Cleanup(func() {
		if _, err := p.Service().Remove(context.Background(), &executorv1.RemoveRequest{TaskId: task.GetId()}); err != nil {
			p.Errorf("Remove: %v", err)
		}
	})
	if _, err := p.Service().Prepare(p.Context(), &executorv1.PrepareRequest{Task: task}); err != nil {
		p.Fatalf("Prepare: %v", err)
	}
	if _, err := p.Service().Start(p.Context(), &executorv1.StartRequest{Task: task}); err != nil {
		p.Fatalf("Start: %v", err)
	}
}
