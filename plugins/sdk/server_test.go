package sdk_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// plain is the least that an executor can be. Each of its calls ends as its
// fields say.
type plain struct {
	err   error
	panic bool
	grace *time.Duration
}

func (p *plain) end() error {
	if p.panic {
		panic("something is wrong")
	}
	return p.err
}

func (p *plain) Describe(context.Context) (*sdk.Description, error) {
	return &sdk.Description{Name: "plain", Version: "1.2.3", Healthy: false, Message: "no engine", Kinds: []string{"plain"}, Capabilities: []string{"zeal"}}, nil
}
func (p *plain) Prepare(context.Context, *sdk.Task, sdk.Handle) (sdk.Handle, error) {
	return nil, p.end()
}
func (p *plain) Start(context.Context, *sdk.Task, sdk.Handle) (*sdk.Started, error) {
	return nil, p.end()
}
func (p *plain) Wait(context.Context, sdk.Ref) (*sdk.Ended, error) {
	return &sdk.Ended{Status: &sdk.Status{}}, p.end()
}
func (p *plain) Shutdown(_ context.Context, _ sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	p.grace = grace
	return nil, p.end()
}
func (p *plain) Terminate(context.Context, sdk.Ref) (*sdk.Status, error) { return nil, p.end() }
func (p *plain) Remove(context.Context, sdk.Ref) error                   { return p.end() }
func (p *plain) List(context.Context, string) ([]sdk.Listed, error)      { return nil, p.end() }

// able has further abilities.
type able struct{ plain }

func (*able) Update(context.Context, *sdk.Task, sdk.Handle) (sdk.Handle, error) { return nil, nil }
func (*able) Stats(context.Context, sdk.Ref) (*sdk.Stats, error)                { return &sdk.Stats{}, nil }
func (*able) Logs(context.Context, sdk.Ref, sdk.LogOptions, func(sdk.LogLine) error) error {
	return nil
}

func (*able) Observe(_ context.Context, ref sdk.Ref, emit func(sdk.Observation) error) error {
	return emit(sdk.Observation{Status: &sdk.Status{Id: ref.TaskID}, Message: "waiting", Error: "not yet"})
}

// Variables that say what the test program should be.
const (
	panicking = "SDK_TEST_PANIC"
	byHand    = "SDK_TEST_BY_HAND"
)

func TestMain(m *testing.M) {
	if os.Getenv(byHand) != "" {
		sdk.Serve(&able{})
		return
	}
	if os.Getenv(wire.CookieKey) == wire.CookieValue {
		sdk.Serve(&able{plain{panic: os.Getenv(panicking) != ""}})
		return
	}
	os.Exit(m.Run())
}

func TestAbilitiesBecomeCapabilities(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		executor sdk.Executor
		want     []string
	}{
		"plain": {&plain{}, []string{"zeal"}},
		"able":  {&able{}, []string{"logs", "observe", "stats", "update", "zeal"}},
	} {
		got, err := sdk.NewServer(test.executor).Describe(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got.GetCapabilities()); diff != "" {
			t.Errorf("%s: capabilities (-want +got):\n%s", name, diff)
		}
	}
	if err := sdk.NewServer(&plain{}).Observe(&executorv1.ObserveRequest{TaskId: "t"}, nil); code(err) != codes.Unimplemented {
		t.Errorf("Observe of an executor without = %v", err)
	}
	if _, err := sdk.NewServer(&plain{}).Stats(t.Context(), &executorv1.StatsRequest{TaskId: "t"}); code(err) != codes.Unimplemented {
		t.Errorf("Stats of an executor without = %v", err)
	}
}

// code is the status code that a worker sees.
func code(err error) codes.Code {
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		return codes.OK
	}
	return e.Code
}

// each makes every call once and returns how it ended.
func each(ctx context.Context, s executorv1.ExecutorServiceServer, task *sdk.Task) map[string]error {
	id := task.GetId()
	results := map[string]error{}
	_, results["Prepare"] = s.Prepare(ctx, &executorv1.PrepareRequest{Task: task})
	_, results["Start"] = s.Start(ctx, &executorv1.StartRequest{Task: task})
	_, results["Wait"] = s.Wait(ctx, &executorv1.WaitRequest{TaskId: id})
	_, results["Shutdown"] = s.Shutdown(ctx, &executorv1.ShutdownRequest{TaskId: id})
	_, results["Terminate"] = s.Terminate(ctx, &executorv1.TerminateRequest{TaskId: id})
	_, results["Remove"] = s.Remove(ctx, &executorv1.RemoveRequest{TaskId: id})
	return results
}

// An error that says nothing of itself may end a task that does not run yet, and
// never one that may be running.
func TestPlainErrors(t *testing.T) {
	t.Parallel()
	for call, err := range each(t.Context(), sdk.NewServer(&plain{err: errors.New("x")}), &sdk.Task{Id: "t"}) {
		var e *wire.Error
		if !errors.As(wire.FromStatus(err), &e) {
			t.Errorf("%s = %v, want an error", call, err)
			continue
		}
		if want := call != "Prepare" && call != "Start"; e.Temporary != want || e.Error() != "x" {
			t.Errorf("%s = %+v (%v), want temporary = %t", call, e, e, want)
		}
	}
}

func TestNotFoundIsSuccessWhereTheTaskIsToGo(t *testing.T) {
	t.Parallel()
	for call, err := range each(t.Context(), sdk.NewServer(&plain{err: sdk.NotFound("t")}), &sdk.Task{Id: "t"}) {
		want := codes.NotFound
		if call == "Shutdown" || call == "Terminate" || call == "Remove" {
			want = codes.OK
		}
		if got := code(err); got != want {
			t.Errorf("%s = %v, want %s", call, err, want)
		}
	}
}

func TestACallMustNameItsTask(t *testing.T) {
	t.Parallel()
	for call, err := range each(t.Context(), sdk.NewServer(&plain{}), nil) {
		if got := code(err); got != codes.InvalidArgument {
			t.Errorf("%s = %v, want INVALID_ARGUMENT", call, err)
		}
	}
}

func TestTheGracePeriodMayBeAbsent(t *testing.T) {
	t.Parallel()
	executor := &plain{}
	for _, test := range []struct {
		asked *durationpb.Duration
		want  *time.Duration
	}{
		{nil, nil}, {durationpb.New(0), new(time.Duration(0))}, {durationpb.New(time.Second), new(time.Second)},
		{durationpb.New(-time.Second), new(time.Duration(0))},
	} {
		if _, err := sdk.NewServer(executor).Shutdown(t.Context(), &executorv1.ShutdownRequest{TaskId: "t", GracePeriod: test.asked}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, executor.grace); diff != "" {
			t.Errorf("grace period of %v (-want +got):\n%s", test.asked, diff)
		}
	}
}

// A panic is the end of one call and not of the process.
func TestAPanicIsAnError(t *testing.T) {
	t.Parallel()
	service := executorv1.NewExecutorServiceClient(host(t, panicking+"=1").conn)
	_, err := service.Start(t.Context(), &executorv1.StartRequest{Task: &sdk.Task{Id: "t"}})
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) || e.Temporary || e.Code != codes.Internal || !strings.Contains(e.Error(), "something is wrong") {
		t.Errorf("Start that panics = %#v", e)
	}
	_, err = service.Wait(t.Context(), &executorv1.WaitRequest{TaskId: "t"})
	if !errors.As(wire.FromStatus(err), &e) || !e.Temporary {
		t.Errorf("Wait that panics = %#v, want a temporary error", e)
	}
	if _, err := service.Describe(t.Context(), &executorv1.DescribeRequest{}); err != nil {
		t.Errorf("Describe after the panics: %v", err)
	}
}

func TestObservationsCrossTheWire(t *testing.T) {
	t.Parallel()
	service := executorv1.NewExecutorServiceClient(host(t).conn)
	stream, err := service.Observe(t.Context(), &executorv1.ObserveRequest{TaskId: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := stream.Recv()
	if err != nil || got.GetRuntime().GetId() != "t1" || got.GetMessage() != "waiting" || got.GetError() != "not yet" {
		t.Errorf("observation = %v, %v", got, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last observation: %v, want EOF", err)
	}
}

// Started by hand an executor says what it is, how it fares, and what to do.
func TestStartedByHand(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), byHand+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the executor started by hand ended with %v, want exit code 1", err)
	}
	for _, want := range []string{"executor of Muster", "plain", "1.2.3", "does not work here: no engine", "logs, observe, stats, update", "plugin directory"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the executor started by hand does not say %q:\n%s", want, out)
		}
	}
}
