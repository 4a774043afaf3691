package workerd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// endless is a text that is too long for a message between worker and dispatcher. It
// is not held, because the benchmark measures memory.
func endless() string { return strings.Repeat("ä", 4<<20) }

// verbose is a plugin that breaks the contract: its texts are endless.
type verbose struct {
	executorv1.ExecutorServiceServer
	// started is closed when Start may succeed, and ended when Wait may.
	started, ended chan struct{}
}

func (v *verbose) Describe(ctx context.Context, req *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	res, err := v.ExecutorServiceServer.Describe(ctx, req)
	res.Message, res.Version = endless(), endless()
	res.Capabilities = append(res.Capabilities, "observe")
	return res, err
}

func (v *verbose) Start(ctx context.Context, req *executorv1.StartRequest) (*executorv1.StartResponse, error) {
	select {
	case <-v.started:
	case <-time.After(time.Minute):
		return nil, sdk.Temporary(errors.New(endless()), 0)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	res, err := v.ExecutorServiceServer.Start(ctx, req)
	name := endless()
	for range 1 << 10 {
		res.Ports = append(res.Ports, &PortConfig{Name: name, TargetPort: 80})
	}
	return res, err
}

func (v *verbose) Observe(_ *executorv1.ObserveRequest, stream grpc.ServerStreamingServer[executorv1.ObserveResponse]) error {
	for {
		if err := stream.Send(&executorv1.ObserveResponse{
			Message: endless(), Error: endless(),
			Runtime: &RuntimeStatus{Id: endless(), Pid: 7, Health: &Health{FailedChecks: 2, Output: endless()}},
		}); err != nil {
			return err
		}
		select {
		case <-time.After(10 * time.Second):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (v *verbose) Wait(ctx context.Context, _ *executorv1.WaitRequest) (*executorv1.WaitResponse, error) {
	select {
	case <-v.ended:
		return &executorv1.WaitResponse{Runtime: &RuntimeStatus{Id: endless(), ExitCode: 3}, Error: endless()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (v *verbose) Logs(_ *executorv1.LogsRequest, stream grpc.ServerStreamingServer[executorv1.LogsResponse]) error {
	if err := stream.Send(&executorv1.LogsResponse{Data: []byte(endless())}); err != nil {
		return err
	}
	return errors.New(endless())
}

// wantClipped fails the test unless a text is the beginning of endless, in valid
// UTF-8, and says that it was clipped.
func wantClipped(t *testing.T, what, text string, limit int) {
	t.Helper()
	if len(text) > limit || len(text) < limit-4 || !utf8.ValidString(text) || !strings.Contains(text, "ää") ||
		!strings.HasSuffix(text, " bytes)") {
		t.Errorf("%s has %d bytes and ends with %q, want %d that say it was clipped", what, len(text), text[max(len(text)-40, 0):], limit)
	}
}

// TestEndlessTextsDoNotEndTheSession has a plugin answer with texts that fit in no
// message to a dispatcher.
func TestEndlessTextsDoNotEndTheSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, a := ableSet(t)
		e := &verbose{ExecutorServiceServer: sdk.NewServer(a), started: make(chan struct{}), ended: make(chan struct{})}
		set, err := executor.NewFixed(t.Context(), contractv1.FromServer(e))
		if err != nil {
			t.Fatal(err)
		}
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil)})

		settle(30 * time.Second)
		got := s.state("a")
		if got.GetState() != TaskState_STARTING {
			t.Fatalf("while it starts: %s", got.GetState())
		}
		wantClipped(t, "observed message", got.GetMessage(), 4<<10)
		wantClipped(t, "observed error", got.GetError(), 4<<10)
		wantClipped(t, "id", got.GetRuntime().GetId(), 256)
		wantClipped(t, "health output", got.GetRuntime().GetHealth().GetOutput(), 1<<10)
		if reports := len(s.all("a")); reports > 5 {
			t.Errorf("the same observation was reported %d times", reports)
		}

		settle(30*time.Second + 500*time.Millisecond)
		got = s.state("a")
		wantClipped(t, "error of Start", got.GetError(), 4<<10)
		close(e.started)
		settle(time.Minute)
		got = s.state("a")
		if got.GetState() != running || len(got.GetPorts()) != 256 {
			t.Fatalf("once it runs: %s, %d ports", got.GetState(), len(got.GetPorts()))
		}
		wantClipped(t, "name of a port", got.GetPorts()[9].GetName(), 64)

		s.logRequest("sub1", "a")
		settle(time.Second)
		lines, _ := s.logged("sub1")
		if len(lines) == 0 || !strings.HasPrefix(lines[0], "ä") || len(lines[0]) != 16<<10 {
			t.Fatalf("%d lines of output", len(lines))
		}

		close(e.ended)
		settle(time.Minute)
		got = s.state("a")
		if got.GetState() != TaskState_FAILED || got.GetRuntime().GetExitCode() != 3 {
			t.Errorf("at the end: %s, exit code %d", got.GetState(), got.GetRuntime().GetExitCode())
		}
		wantClipped(t, "error of Wait", got.GetError(), 4<<10)

		about := s.hello.GetDescription().GetExecutors()[0]
		wantClipped(t, "description", about.GetMessage(), 1<<10)
		wantClipped(t, "version", about.GetVersion(), 256)
		select {
		case <-d.sessions:
			t.Error("the worker had to begin another session")
		default:
		}
	})
}

// schemed is an executor with a payload schema that is too large to be reported.
type schemed struct {
	executorv1.ExecutorServiceServer
}

func (e *schemed) Describe(ctx context.Context, req *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	res, err := e.ExecutorServiceServer.Describe(ctx, req)
	res.PayloadSchema = endless()
	return res, err
}

func TestExecutorWithTooLargeSchemaIsUnhealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, a := ableSet(t)
		set, err := executor.NewFixed(t.Context(), contractv1.FromServer(&schemed{sdk.NewServer(a)}))
		if err != nil {
			t.Fatal(err)
		}
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		start(t, n, set, nil)
		got := d.await(t).hello.GetDescription().GetExecutors()[0]
		if got.GetHealth() != ExecutorDescription_UNHEALTHY || got.GetPayloadSchema() != "" ||
			got.GetMessage() != "payload schema has 8388608 bytes; at most 65536 are allowed" {
			t.Errorf("executor: %s, %q, schema of %d bytes", got.GetHealth(), got.GetMessage(), len(got.GetPayloadSchema()))
		}
	})
}
