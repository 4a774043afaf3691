package conformance_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// flaw is the variable that says how the test program, as an executor, breaks
// the contract. "none" does not.
const flaw = "CONFORMANCE_TEST_FLAW"

func TestMain(m *testing.M) {
	if os.Getenv(wire.CookieKey) == wire.CookieValue {
		if how, ok := os.LookupEnv(networkFlaw); ok {
			serveNetwork(how)
			return
		}
		serve(os.Getenv(flaw))
		return
	}
	os.Exit(m.Run())
}

// serve serves the null executor with one flaw.
func serve(how string) {
	state := sdk.StateDir("")
	if how == "RestartBetweenCalls" {
		// It keeps what it knows where its next process does not look.
		dir, err := os.MkdirTemp(state, "forgotten")
		if err != nil {
			panic(err)
		}
		state = dir
	}
	inner, err := null.New(null.Config{Version: "1", StateDir: filepath.Join(state, "tasks")})
	if err != nil {
		panic(err)
	}
	flawed := &flawed{Executor: inner, flaw: how, state: state, begun: time.Now()}
	switch how {
	case "DiesWithItsHost":
		// go-plugin's own server does not notice.
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: handshake.Config(), VersionedPlugins: handshake.Versions(sdk.NewServer(flawed)),
			GRPCServer: func(o []grpc.ServerOption) *grpc.Server { return grpc.NewServer(o...) },
		})
	case "Logs":
		sdk.Serve(&flawedLogs{flawed})
	case "Stats":
		sdk.Serve(&flawedStats{flawed})
	case "Volumes":
		sdk.Serve(&flawedVolumes{flawed})
	case "Exec":
		sdk.Serve(&flawedExec{flawed})
	case "Update", "none":
		sdk.Serve(&flawedUpdate{flawed})
	case "Starts":
		os.Exit(3)
	default:
		sdk.Serve(flawed)
	}
}

// flawed is the null executor, but for the one rule that it breaks.
type flawed struct {
	*null.Executor
	flaw  string
	state string
	begun time.Time
	busy  atomic.Int32
}

func (f *flawed) Describe(ctx context.Context) (*sdk.Description, error) {
	said, err := f.Executor.Describe(ctx)
	if err == nil && f.flaw == "Describe" {
		said.Version = ""
	}
	return said, err
}

func (f *flawed) Prepare(ctx context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	switch f.flaw {
	case "KilledAtAnyMoment":
		// What is half done when the process is killed is in the way forever.
		mark := filepath.Join(f.state, "making-"+task.GetId())
		if _, err := os.Stat(mark); err == nil {
			return nil, sdk.Failed(errors.New("it is being prepared already"))
		}
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		defer func() { _ = os.Remove(mark) }()
	case "ManyAtOnce":
		defer f.busy.Add(-1)
		if f.busy.Add(1) > 1 {
			return nil, sdk.Failed(errors.New("one at a time, please"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	if f.flaw == "Files" {
		// It does not look for them.
		task = proto.CloneOf(task)
		task.Files = nil
	}
	handle, err := f.Executor.Prepare(ctx, task, handle)
	if err == nil && f.flaw == "Handles" {
		handle = sdk.Handle("precious")
	}
	return handle, err
}

func (f *flawed) Start(ctx context.Context, task *sdk.Task, handle sdk.Handle) (*sdk.Started, error) {
	if f.flaw == "Handles" && string(handle) != "precious" {
		return nil, sdk.Failed(errors.New("where is the handle?"))
	}
	if main := task.GetSharesNetworkOf(); f.flaw == "Groups" && main != "" {
		// It joins the namespace of the main container, which must run for that.
		listed, err := f.Executor.List(ctx, "")
		if err != nil || !slices.ContainsFunc(listed, func(l sdk.Listed) bool { return l.TaskID == main && l.State == sdk.Running }) {
			return nil, sdk.Failed(errors.Join(errors.New("the main container does not run"), err))
		}
	}
	if f.flaw == "Files" {
		task = proto.CloneOf(task)
		task.Files = nil
	}
	started, err := f.Executor.Start(ctx, task, nil)
	switch {
	case f.flaw == "UnknownTask" && sdk.IsNotFound(err):
		return &sdk.Started{}, nil
	case f.flaw == "Handles" && err == nil:
		started.Handle = handle
	case f.flaw == "RepeatedCalls" && err == nil:
		started.Status.Id = time.Now().String()
	}
	return started, err
}

// Namespace names a namespace that is not there, with the flaw. An executor that only
// accepts has none.
func (f *flawed) Namespace(ctx context.Context, ref sdk.Ref) (string, error) {
	path, err := f.Executor.Namespace(ctx, ref)
	switch f.flaw {
	case "NetworkProvided":
		path += ".gone"
	case "NetworkAccepted":
		path = ""
	}
	return path, err
}

func (f *flawed) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	if f.flaw == "NeverStarted" {
		if ended, err := f.Executor.Wait(ctx, ref); err == nil || ctx.Err() != nil {
			return ended, err
		}
		return &sdk.Ended{Status: &sdk.Status{}}, nil
	}
	ended, err := f.Executor.Wait(ctx, ref)
	switch {
	case f.flaw == "WaitIsCancelledFreely" && ctx.Err() != nil:
		_, _ = f.Executor.Terminate(context.Background(), ref)
	case err != nil:
	case f.flaw == "Lifecycle", f.flaw == "EndWhileAway" && ended.At.Before(f.begun.Add(time.Second)):
		ended.Status.ExitCode = 0
	}
	return ended, err
}

func (f *flawed) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	if f.flaw == "Shutdown" {
		grace = new(time.Duration)
	}
	return f.Executor.Shutdown(ctx, ref, grace)
}

func (f *flawed) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	if f.flaw == "Terminate" {
		return f.Executor.Shutdown(ctx, ref, nil)
	}
	return f.Executor.Terminate(ctx, ref)
}

func (f *flawed) Remove(ctx context.Context, ref sdk.Ref) error {
	if f.flaw == "RemoveWhileRunning" {
		listed, err := f.Executor.List(ctx, "")
		for _, task := range listed {
			if task.TaskID == ref.TaskID && task.State == sdk.Running {
				return sdk.Failed(errors.Join(errors.New("it runs"), err))
			}
		}
	}
	return f.Executor.Remove(ctx, ref)
}

// Signal sends no signal with the flaw.
func (f *flawed) Signal(ctx context.Context, ref sdk.Ref, signal string) error {
	if f.flaw == "Signal" {
		return nil
	}
	return f.Executor.Signal(ctx, ref, signal)
}

func (f *flawed) List(ctx context.Context, node string) ([]sdk.Listed, error) {
	if f.flaw == "ListByNode" {
		node = ""
	}
	return f.Executor.List(ctx, node)
}

// Those with abilities that they only claim.
type (
	flawedLogs  struct{ *flawed }
	flawedStats struct{ *flawed }
	flawedExec  struct{ *flawed }
	// flawedUpdate ends the task; without the flaw it does nothing, which it may.
	flawedUpdate struct{ *flawed }
)

func (f flawedUpdate) Update(ctx context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	listed, err := f.List(ctx, task.GetNodeId())
	if err != nil || !slices.ContainsFunc(listed, func(l sdk.Listed) bool { return l.TaskID == task.GetId() }) {
		return nil, errors.Join(err, sdk.NotFound(task.GetId()))
	}
	if f.flaw != "Update" {
		return handle, nil
	}
	_, err = f.Terminate(ctx, sdk.Ref{TaskID: task.GetId()})
	return handle, err
}

// Observe ends with the task. With the flaw it reports another task.
func (f *flawed) Observe(ctx context.Context, ref sdk.Ref, emit func(sdk.Observation) error) error {
	listed, err := f.List(ctx, "")
	at := slices.IndexFunc(listed, func(l sdk.Listed) bool { return l.TaskID == ref.TaskID })
	if err != nil || at < 0 {
		return errors.Join(err, sdk.NotFound(ref.TaskID))
	}
	status := listed[at].Status
	if f.flaw == "Observe" {
		status = &sdk.Status{Id: "other"}
	}
	if err := emit(sdk.Observation{Status: status}); err != nil {
		return err
	}
	_, err = f.Wait(ctx, ref)
	return err
}

// flawedVolumes removes volumes that are not there.
type flawedVolumes struct{ *flawed }

func (flawedVolumes) Volumes(context.Context, string) ([]*sdk.Volume, error) { return nil, nil }
func (flawedVolumes) RemoveVolume(context.Context, string) error             { return nil }

func (flawedLogs) Logs(context.Context, sdk.Ref, sdk.LogOptions, func(sdk.LogLine) error) error {
	return nil
}
func (flawedStats) Stats(context.Context, sdk.Ref) (*sdk.Stats, error) { return &sdk.Stats{}, nil }
func (flawedExec) Exec(context.Context, sdk.Ref, sdk.Command, sdk.ExecIO) (int32, error) {
	return 0, nil
}

// try tries the test program with a flaw.
func try(t *testing.T, how string, rules ...string) []conformance.Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	task, ok := conformance.TemplateFor("null")
	if !ok {
		t.Fatal("there is no template for null")
	}
	results, err := conformance.Try(t.Context(), conformance.Options{
		Command: []string{self}, Env: []string{flaw + "=" + how, "GORACE=atexit_sleep_ms=0"}, Task: task, Rules: rules, Parallel: 2,
		Patience: 30 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// Each rule is found broken by an executor that breaks it.
func TestFlawsAreFound(t *testing.T) {
	t.Parallel()
	for _, rule := range conformance.Rules() {
		// What is a wrong spec is known only to who wrote the executor.
		if rule.Name == "Refusals" {
			continue
		}
		if rule.Name == "NetworkAccepted" && os.Geteuid() != 0 {
			// No namespace can be made to try it with.
			continue
		}
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			results := try(t, rule.Name, rule.Name)
			if len(results) != 1 || results[0].Rule != rule.Name || results[0].Outcome != conformance.Broken || len(results[0].Faults) == 0 {
				t.Fatalf("results = %+v, want the rule broken", results)
			}
			t.Logf("%q", results[0].Faults)
		})
	}
}

// Without a flaw nothing is found.
func TestNothingIsFoundWhereNothingIsWrong(t *testing.T) {
	t.Parallel()
	for _, result := range try(t, "none") {
		want := conformance.Kept
		if result.Rule == "Refusals" {
			want = conformance.NotTried
		}
		if result.Outcome != want {
			t.Errorf("%+v", result)
		}
	}
}

// A program that does not start is told of once.
func TestAProgramThatDoesNotStart(t *testing.T) {
	t.Parallel()
	results := try(t, "Starts")
	if len(results) != 1 || results[0].Rule != "Starts" || results[0].Outcome != conformance.Broken {
		t.Errorf("results = %+v, want one, of the start", results)
	}
}

// TestExecutorsStartWhereTemporaryPathIsLong sets TMPDIR to a path that leaves no room
// for the name of a Unix socket.
func TestExecutorsStartWhereTemporaryPathIsLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	if results := try(t, "none", "Describe"); results[0].Outcome != conformance.Kept {
		t.Errorf("results = %+v, want the rule kept", results)
	}
}
