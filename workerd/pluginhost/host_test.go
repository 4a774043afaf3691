package pluginhost_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// patience is how long any of these tests waits for something.
const patience = 2 * time.Minute

// host runs a host until the returned function is called, or the test ends.
func host(t *testing.T, change func(*pluginhost.Config)) (h *pluginhost.Host, stateDir string, stop func()) {
	t.Helper()
	cfg := pluginhost.DefaultConfig()
	cfg.StateDir = t.TempDir()
	// A busy machine takes its time.
	cfg.StartTimeout = patience
	change(&cfg)
	h, err := pluginhost.New(pluginhost.Env{Logger: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return h, cfg.StateDir, stop
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// task is a null task with a script.
func task(t *testing.T, id string, payload map[string]any) *executor.Task {
	t.Helper()
	s, err := structpb.NewStruct(payload)
	if err != nil {
		t.Fatal(err)
	}
	return &executor.Task{ID: id, NodeID: "node1", Spec: &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null", Payload: s}},
	}}
}

// launch prepares and starts a task.
func launch(t *testing.T, e executor.Executor, task *executor.Task) {
	t.Helper()
	ctx := deadline(t)
	if _, err := e.Prepare(ctx, task, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx, task, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// pidOf returns the process id of the "good" plugin with a state directory.
func pidOf(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestBrokenPluginsAreReportedAndTroubleNoOther(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		// One that hangs is given up after this; the others must be up by then.
		cfg.StartTimeout = 15 * time.Second
		cfg.Commands = map[string][]string{
			"good": command("good"), "exits": command("exits"), "a-hangs": command("hangs"), "talks": command("talks"),
			"newer": command("newer"), "leaves": command("leaves-child"), "missing": {"/nowhere/muster-executor-missing"},
		}
	})
	ctx := deadline(t)
	e, err := h.For(ctx, "null", "")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, e.Executor, task(t, "a", nil))
	want := map[string]string{
		"exits":   "exit status 7; its last output: libfoo.so.1",
		"a-hangs": "timeout while waiting for plugin to start",
		"talks":   "Unrecognized remote plugin message: Hello!",
		"newer":   "incompatible API version with plugin. Plugin version: 2, Client versions: [1]",
		"leaves":  "exit status 9",
		"missing": "no such file",
	}
	seen := 0
	for _, d := range h.Describe(ctx) {
		if d.Name == "good" {
			if d.Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY || d.Description.GetVersion() != "1.2.3" ||
				!d.Runs("null") || d.Description.GetPayloadSchema() == "" || len(d.Description.GetChecksum()) != 64 {
				t.Errorf("good: %v", d.Description)
			}
			continue
		}
		seen++
		if d.Description.GetHealth() != musterv1.ExecutorDescription_UNHEALTHY || !strings.Contains(d.Description.GetMessage(), want[d.Name]) {
			t.Errorf("%s: %v, want %q", d.Name, d.Description, want[d.Name])
		}
	}
	if seen != len(want) {
		t.Errorf("%d broken plugins described, want %d", seen, len(want))
	}
	// One of the broken ones may be the one that is asked for.
	_, err = h.For(ctx, "exotic", "")
	var e2 *executor.Error
	if !errors.As(err, &e2) || !e2.Temporary {
		t.Errorf("For an unknown kind: %v, want a temporary error", err)
	}
}

// The good plugin has a task run while the one that hangs has not been given up.
func TestAPluginThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	h, _, stop := host(t, func(cfg *pluginhost.Config) {
		cfg.StartTimeout = time.Hour
		cfg.Commands = map[string][]string{"good": command("good"), "a-hangs": command("hangs")}
	})
	e, err := h.For(deadline(t), "null", "")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, e.Executor, task(t, "a", nil))
	// Nor does it hold up the end.
	stop()
}

func TestAPluginThatNeverDescribesItselfIsUnhealthy(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"mute": command("mute"), "good": command("good")}
	})
	if _, err := h.For(deadline(t), "null", ""); err != nil {
		t.Fatal(err)
	}
	// One that says nothing does not keep the others from being described.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	for _, d := range h.Describe(ctx) {
		healthy := d.Description.GetHealth() == musterv1.ExecutorDescription_HEALTHY
		if healthy != (d.Name == "good") {
			t.Errorf("%s: %v", d.Name, d.Description)
		}
	}
}

func TestNoPluginForAKindIsFinal(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
	})
	_, err := h.For(deadline(t), "exotic", "")
	var e *executor.Error
	if !errors.As(err, &e) || e.Temporary || !e.BlameNode {
		t.Errorf("For an unknown kind: %v, want a fatal error that blames the node", err)
	}
}

func TestAKilledPluginIsStartedAgainAndItsTasksRunOn(t *testing.T) {
	t.Parallel()
	h, state, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
	})
	ctx := deadline(t)
	e, err := h.For(ctx, "null", "")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, e.Executor, task(t, "a", nil))
	for range 3 {
		waited := make(chan error, 1)
		go func() {
			_, err := e.Executor.Wait(ctx, executor.Ref{TaskID: "a"})
			waited <- err
		}()
		pid := pidOf(t, filepath.Join(state, "good"))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Whether Wait was under way already or not: it fails for a while, or
		// not at all.
		for {
			if res, err := e.Executor.List(ctx, "node1"); err == nil {
				if len(res) != 1 || res[0].State != executor.StateRunning {
					t.Errorf("after the crash: %v", res)
				}
				if now := pidOf(t, filepath.Join(state, "good")); now != pid {
					break
				}
			} else {
				var said *executor.Error
				if !errors.As(err, &said) || !said.Temporary || !strings.HasPrefix(said.Error(), "executor good: ") {
					t.Fatalf("a call during the restart: %v, want a temporary error that names the executor", err)
				}
			}
			if ctx.Err() != nil {
				t.Fatal("the plugin did not come back")
			}
		}
		select {
		case err := <-waited:
			var said *executor.Error
			if !errors.As(err, &said) || !said.Temporary || !strings.Contains(said.Error(), "signal: killed") {
				t.Errorf("Wait during the crash: %v", err)
			}
		default:
			// It was called after the restart and waits still.
		}
	}
	if _, err := e.Executor.Terminate(ctx, executor.Ref{TaskID: "a"}); err != nil {
		t.Error(err)
	}
}

func TestACallThatHangsIsCancelledAndHoldsUpNothing(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
	})
	e, err := h.For(deadline(t), "null", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hung := make(chan error, 1)
	go func() {
		_, err := e.Executor.Prepare(ctx, task(t, "stuck", map[string]any{"hangAt": "prepare"}), nil)
		hung <- err
	}()
	launch(t, e.Executor, task(t, "free", nil))
	if all := h.Describe(deadline(t)); len(all) != 1 || all[0].Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY {
		t.Errorf("described: %v", all)
	}
	cancel()
	select {
	case err := <-hung:
		if err == nil {
			t.Error("a cancelled call succeeded")
		}
	case <-time.After(patience):
		t.Fatal("a cancelled call did not return")
	}
}

func TestErrorSaysWhetherThePluginWasReached(t *testing.T) {
	t.Parallel()
	h, _, stop := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
	})
	ctx := deadline(t)
	e, err := h.For(ctx, "null", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, down := range []bool{false, true} {
		if down {
			stop()
		}
		_, err := e.Executor.Wait(ctx, executor.Ref{TaskID: "unknown"})
		var said *executor.Error
		if !errors.As(err, &said) || said.NotCalled != down {
			t.Errorf("plugin is down = %t: %v, want NotCalled = %t", down, err, down)
		}
	}
}

func TestOnlyTheFileThatIsPinnedIsStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := script(t, dir, "pinned", "good")
	script(t, dir, "tampered", "good")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	right := hex.EncodeToString(sum[:])
	h, state, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Dirs = []string{dir, filepath.Join(dir, "not-there")}
		cfg.Checksums = map[string]string{"pinned": strings.ToUpper(right), "tampered": strings.Repeat("0", 64)}
	})
	for _, d := range h.Describe(deadline(t)) {
		switch d.Name {
		case "pinned":
			if d.Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY || d.Description.GetChecksum() != right {
				t.Errorf("pinned: %v", d.Description)
			}
		case "tampered":
			if d.Description.GetHealth() != musterv1.ExecutorDescription_UNHEALTHY || !strings.Contains(d.Description.GetMessage(), "refused") {
				t.Errorf("tampered: %v", d.Description)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(state, "tampered", "pid")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the refused plugin was started")
	}
}

func TestAPluginSeesNothingOfTheWorkersSecrets(t *testing.T) {
	t.Setenv("MUSTER_TEST_SECRET", "swordfish")
	t.Setenv("MUSTER_TEST_PASSED", "yes")
	h, state, stop := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
		cfg.PassEnv = []string{"MUSTER_TEST_PASSED"}
	})
	if _, err := h.For(deadline(t), "null", ""); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(state, "good", "env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(content)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[key] = value
	}
	if env["MUSTER_TEST_SECRET"] != "" || env["MUSTER_TEST_PASSED"] != "yes" || env["PATH"] == "" ||
		env[wire.StateDirKey] != filepath.Join(state, "good") {
		t.Errorf("environment of the plugin:\n%s", content)
	}
	sockets := env["PLUGIN_UNIX_SOCKET_DIR"]
	for _, dir := range []string{sockets, filepath.Dir(sockets)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("socket directory %s: %v, %v", dir, info, err)
		}
	}
	pid := pidOf(t, filepath.Join(state, "good"))
	stop()
	if alive(pid) {
		t.Error("the plugin outlives its host")
	}
	if _, err := os.Stat(filepath.Dir(sockets)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket directory outlives its host (%v)", err)
	}
}

func TestPluginsComeAndGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs = []string{dir} })
	ctx := deadline(t)
	if all := h.Describe(ctx); len(all) != 0 {
		t.Errorf("an empty directory holds %v", all)
	}
	script(t, dir, "late", "good")
	if err := os.WriteFile(filepath.Join(dir, "muster-executor-readme"), []byte("not executable"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all := h.Describe(ctx); len(all) != 1 || all[0].Name != "late" {
		t.Errorf("described: %v", all)
	}
	select {
	case <-h.Changes():
	case <-ctx.Done():
		t.Error("no listener was woken")
	}
	e, err := h.For(ctx, "null", "")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, e.Executor, task(t, "a", nil))
}

func TestAHungPluginIsKilledAtTheEnd(t *testing.T) {
	t.Parallel()
	h, state, stop := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"good": command("good")}
	})
	if _, err := h.For(deadline(t), "null", ""); err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, filepath.Join(state, "good"))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stop()
	if alive(pid) {
		t.Error("the plugin outlives its host")
	}
}

func TestSettingsThatAreWrongAreNamed(t *testing.T) {
	t.Parallel()
	_, err := pluginhost.New(pluginhost.Env{Logger: zap.NewNop()}, pluginhost.Config{
		Checksums: map[string]string{"a": "xyz"},
		Commands:  map[string][]string{"../b": {"x"}, "c": {}, strings.Repeat("d", 257): {"x"}, "e\xff": {"x"}},
	})
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 6 {
		t.Errorf("error = %v, want six faults", err)
	}
}

// TestHealthyPluginsComeFirst has two plugins of a kind: a new task gets the healthy
// one, and a task that the other one holds stays with that.
func TestHealthyPluginsComeFirst(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"a-sick": command("sick"), "b-good": command("good")}
	})
	ctx := deadline(t)
	// Nothing is known of either at first, and then of both.
	for range 2 {
		for holder, want := range map[string]string{"": "b-good", "a-sick": "a-sick", "b-good": "b-good"} {
			if e, err := h.For(ctx, "null", holder); err != nil || e.Name != want {
				t.Errorf("held by %q: got %v, %v, want %s", holder, e, err, want)
			}
		}
		h.Describe(ctx)
	}
	var gone *executor.Error
	if _, err := h.For(ctx, "null", "gone"); !errors.As(err, &gone) || gone.Temporary || !gone.BlameNode {
		t.Errorf("held by a plugin that is gone: %v, want a fatal error that blames the node", err)
	}
}

func TestUnhealthyPluginIsUsedIfThereIsNoOther(t *testing.T) {
	t.Parallel()
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"sick": command("sick")}
	})
	if e, err := h.For(deadline(t), "null", ""); err != nil || e.Name != "sick" {
		t.Errorf("got %v, %v, want the only plugin", e, err)
	}
}
