package null_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/executortest"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func TestMain(m *testing.M) {
	os.Exit(executortest.Main(m, func() (sdk.Executor, error) {
		return null.New(null.Config{Version: "test", StateDir: sdk.StateDir("")})
	}))
}

func spec(t testing.TB, payload map[string]any) *musterv1.TaskSpec {
	t.Helper()
	fields, err := structpb.NewStruct(payload)
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: null.Kind, Payload: fields}}}
}

func newTask(t testing.TB, id string, payload map[string]any) *sdk.Task {
	return &sdk.Task{Id: id, Name: "svc.1." + id, NodeId: "n1", Spec: spec(t, payload)}
}

func TestConformance(t *testing.T) {
	executortest.Run(t, func(t *testing.T) *executortest.Harness {
		dir := t.TempDir()
		return &executortest.Harness{
			Plugin: executortest.StartPlugin(t, wire.StateDirKey+"="+dir),
			Spec: func(behavior executortest.Behavior) *musterv1.TaskSpec {
				payload := map[string]any{"ignoreShutdown": behavior.Stubborn, "exitCode": float64(behavior.ExitCode)}
				if !behavior.Forever {
					payload["runFor"] = behavior.RunFor.String()
				}
				if behavior.Grace > 0 {
					payload["stopGracePeriod"] = behavior.Grace.String()
				}
				return spec(t, payload)
			},
			Wrong: map[string]*musterv1.TaskSpec{
				"runfor":       spec(t, map[string]any{"runfor": "1s"}),
				"runFor":       spec(t, map[string]any{"runFor": "soon"}),
				"exitPluginAt": spec(t, map[string]any{"exitPluginAt": "lunch"}),
				"blame":        spec(t, map[string]any{"blame": "weather"}),
			},
			Left: func(taskID string) []string {
				left, err := filepath.Glob(filepath.Join(dir, "*"+taskID+"*"))
				if err != nil {
					t.Error(err)
				}
				return left
			},
		}
	})
}

func TestTheScriptIsFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, err := null.New(null.Config{})
		if err != nil {
			t.Fatal(err)
		}
		task := newTask(t, "t1", map[string]any{
			"prepareDelay": "2s", "startDelay": "3s", "runFor": "1m", "exitCode": 4, "unhealthy": true,
			"failStart": "not yet", "failTimes": 2, "temporary": true, "retryAfter": "7s",
		})
		begun := time.Now()
		if _, err := e.Prepare(t.Context(), task, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("Prepare took %s", took)
		}
		for range 2 {
			_, err := e.Start(t.Context(), task, nil)
			var failure *wire.Error
			if !errors.As(err, &failure) || !failure.Temporary || failure.Delay() != 7*time.Second || failure.Error() != "not yet" {
				t.Errorf("Start = %#v, want the temporary failure of the script", err)
			}
		}
		if _, err := e.Start(t.Context(), task, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 11*time.Second {
			t.Errorf("Prepare and three Starts took %s", took)
		}
		ended, err := e.Wait(t.Context(), sdk.Ref{TaskID: "t1"})
		if err != nil || ended.Status.GetExitCode() != 4 || ended.Error != "unhealthy" {
			t.Errorf("Wait = %+v, %v", ended, err)
		}
		if took := time.Since(begun); took != 71*time.Second {
			t.Errorf("the task ended after %s", took)
		}
	})
}

func TestFailuresBlame(t *testing.T) {
	t.Parallel()
	for blame, want := range map[string]wire.Blame{"node": wire.BlameNode, "spec": wire.BlameSpec, "": wire.BlameNobody} {
		e, err := null.New(null.Config{})
		if err != nil {
			t.Fatal(err)
		}
		payload := map[string]any{"failPrepare": "no"}
		if blame != "" {
			payload["blame"] = blame
		}
		_, err = e.Prepare(t.Context(), newTask(t, "t1", payload), nil)
		var failure *wire.Error
		if !errors.As(err, &failure) || failure.Temporary || failure.Blame != want {
			t.Errorf("blame %q: %#v", blame, err)
		}
	}
}

func TestHangingEndsWithTheCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, err := null.New(null.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := e.Prepare(ctx, newTask(t, "t1", map[string]any{"hangAt": "prepare"}), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Prepare = %v, want it to hang until its deadline", err)
		}
	})
}

// A script can take the process down once; the next process carries on.
func TestTheProcessEndsWhereTheScriptSays(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"prepare", "start", "wait", "shutdown", "terminate", "remove"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			exits := 0
			var e *null.Executor
			open := func() {
				var err error
				if e, err = null.New(null.Config{StateDir: dir, Exit: func() { exits++ }}); err != nil {
					t.Fatal(err)
				}
			}
			open()
			task, ref := newTask(t, "t1", map[string]any{"exitPluginAt": call, "runFor": "0s"}), sdk.Ref{TaskID: "t1"}
			steps := []struct {
				name string
				do   func() error
			}{
				{"prepare", func() error { _, err := e.Prepare(t.Context(), task, nil); return err }},
				{"start", func() error { _, err := e.Start(t.Context(), task, nil); return err }},
				{"wait", func() error { _, err := e.Wait(t.Context(), ref); return err }},
				{"shutdown", func() error { _, err := e.Shutdown(t.Context(), ref, nil); return err }},
				{"terminate", func() error { _, err := e.Terminate(t.Context(), ref); return err }},
				{"remove", func() error { return e.Remove(t.Context(), ref) }},
			}
			for _, step := range steps {
				err := step.do()
				if (err != nil) != (step.name == call) {
					t.Fatalf("%s = %v", step.name, err)
				}
				if err != nil {
					open()
					if err := step.do(); err != nil {
						t.Fatalf("%s by the next process = %v", step.name, err)
					}
				}
			}
			if exits != 1 {
				t.Errorf("the process ended %d times, want 1", exits)
			}
		})
	}
}

func TestARecordOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "t1.json"), []byte(`{"v":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := null.New(null.Config{StateDir: dir}); err == nil {
		t.Error("New takes a record of version 99")
	}
}

func TestIDsAreNoPaths(t *testing.T) {
	t.Parallel()
	e, err := null.New(null.Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"../t1", "a/b", "/etc/passwd", ".."} {
		if _, err := e.Prepare(t.Context(), &sdk.Task{Id: id}, nil); err == nil {
			t.Errorf("Prepare takes the id %q", id)
		}
	}
}

// Ten thousand tasks in one process must stay cheap: a simulation has more.
func TestTenThousandTasksAreCheap(t *testing.T) {
	const tasks = 10_000
	e, err := null.New(null.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	task := newTask(t, "", nil)
	for i := range tasks {
		task.Id = fmt.Sprintf("task%d", i)
		if _, err := e.Prepare(ctx, task, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Start(ctx, task, nil); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	perTask := int64(after.HeapAlloc-before.HeapAlloc) / tasks
	t.Logf("%d bytes a task", perTask)
	if perTask > 1500 {
		t.Errorf("a task takes %d bytes, want at most 1500", perTask)
	}
	for i := range tasks {
		waiting.Go(func() {
			if _, err := e.Wait(ctx, sdk.Ref{TaskID: fmt.Sprintf("task%d", i)}); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	cancel()
	waiting.Wait()
	if listed, err := e.List(t.Context(), ""); err != nil || len(listed) != tasks {
		t.Errorf("List = %d tasks, %v", len(listed), err)
	}
}

func BenchmarkTask(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "files": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			e, err := null.New(null.Config{StateDir: dir})
			if err != nil {
				b.Fatal(err)
			}
			task := newTask(b, "", map[string]any{"runFor": "1h"})
			for i := 0; b.Loop(); i++ {
				task.Id = fmt.Sprintf("task%d", i)
				ref := sdk.Ref{TaskID: task.Id}
				_, err1 := e.Prepare(b.Context(), task, nil)
				_, err2 := e.Start(b.Context(), task, nil)
				_, err3 := e.Terminate(b.Context(), ref)
				if err := errors.Join(err1, err2, err3, e.Remove(b.Context(), ref)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNamespacesOutliveTheProcessAndGoWithTheTask(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *null.Executor {
		e, err := null.New(null.Config{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	task := newTask(t, "t1", nil)
	task.Networked = true
	if _, err := open().Prepare(t.Context(), task, nil); err != nil {
		t.Fatal(err)
	}
	e, ref := open(), sdk.Ref{TaskID: "t1"}
	path, err := e.Namespace(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("after Prepare: %v", err)
	}
	if err := e.SetNetwork(t.Context(), task, nil, &sdk.Network{Namespace: "/run/netns/other"}); err == nil {
		t.Error("SetNetwork takes the namespace of another task")
	}
	if err := e.SetNetwork(t.Context(), task, nil, &sdk.Network{Namespace: path}); err != nil {
		t.Errorf("SetNetwork = %v", err)
	}
	if err := e.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v, want that the namespace is gone", err)
	}
}

func TestTasksAcceptANamespaceIfTheirScriptSaysSo(t *testing.T) {
	t.Parallel()
	e, err := null.New(null.Config{})
	if err != nil {
		t.Fatal(err)
	}
	task, ref := newTask(t, "t1", map[string]any{"acceptNetwork": true}), sdk.Ref{TaskID: "t1"}
	task.Networked = true
	if _, err := e.Prepare(t.Context(), task, nil); err != nil {
		t.Fatal(err)
	}
	if path, err := e.Namespace(t.Context(), ref); err != nil || path != "" {
		t.Errorf("Namespace = %q, %v; want none", path, err)
	}
	network := &sdk.Network{Namespace: "/run/netns/other"}
	if err := e.SetNetwork(t.Context(), task, nil, network); err != nil || e.Network("t1") != network {
		t.Errorf("SetNetwork = %v, kept %v", err, e.Network("t1"))
	}
}
