package workerd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
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

// describing is an executor that describes itself otherwise.
type describing struct {
	executorv1.ExecutorServiceServer
	change func(*executorv1.DescribeResponse)
}

func (e *describing) Describe(ctx context.Context, req *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	res, err := e.ExecutorServiceServer.Describe(ctx, req)
	e.change(res)
	return res, err
}

// described starts a worker with an executor for each change of a description, which
// are named e00, e01 and so on. It returns the first session of the worker, whose
// description dispatchers accept.
func described(t *testing.T, cfg func(*workerd.Config), changes ...func(*executorv1.DescribeResponse)) *session {
	t.Helper()
	var all []executor.Executor
	for i, change := range changes {
		_, a := ableSet(t)
		all = append(all, contractv1.FromServer(&describing{sdk.NewServer(a), func(res *executorv1.DescribeResponse) {
			res.Name = fmt.Sprintf("e%02d", i)
			change(res)
		}}))
	}
	set, err := executor.NewFixed(t.Context(), all...)
	if err != nil {
		t.Fatal(err)
	}
	n := newNetwork()
	d, _ := n.serve(t, "d1:1")
	start(t, n, set, cfg)
	s := d.await(t)
	if err := nodereport.Check(s.hello.GetDescription()); err != nil {
		t.Errorf("a dispatcher refuses the node: %v", err)
	}
	return s
}

// wantWithheld fails the test unless an executor is unhealthy with a message, and
// nothing else is reported of it.
func wantWithheld(t *testing.T, e *ExecutorDescription, message string) {
	t.Helper()
	if e.GetHealth() != ExecutorDescription_UNHEALTHY || e.GetMessage() != message ||
		len(e.GetKinds())+len(e.GetCapabilities())+len(e.GetPayloadSchema()) > 0 {
		t.Errorf("executor %s: %s, %q, %d kinds, %d capabilities, schema of %d bytes; want it unhealthy with %q and nothing else",
			e.GetName(), e.GetHealth(), e.GetMessage(), len(e.GetKinds()), len(e.GetCapabilities()), len(e.GetPayloadSchema()), message)
	}
}

// wantReported fails the test unless executors are healthy and run something.
func wantReported(t *testing.T, executors ...*ExecutorDescription) {
	t.Helper()
	for _, e := range executors {
		if e.GetHealth() != ExecutorDescription_HEALTHY || len(e.GetKinds()) == 0 {
			t.Errorf("executor %s: %s, %q, kinds %q; want it healthy", e.GetName(), e.GetHealth(), e.GetMessage(), e.GetKinds())
		}
	}
}

// unchanged is the description of an executor within the limits.
func unchanged(*executorv1.DescribeResponse) {}

// gpus returns a change that adds generic resources.
func gpus(n int) func(*executorv1.DescribeResponse) {
	return func(res *executorv1.DescribeResponse) {
		res.Resources = &Resources{}
		for i := range n {
			res.Resources.Generic = append(res.Resources.Generic,
				&GenericResource{Kind: "gpu", Resource: &GenericResource_Named{Named: fmt.Sprint(i)}})
		}
	}
}

// schema returns a change to a payload schema of a size.
func schema(bytes int) func(*executorv1.DescribeResponse) {
	return func(res *executorv1.DescribeResponse) {
		res.PayloadSchema = `{"title":"` + strings.Repeat("x", bytes-len(`{"title":""}`)) + `"}`
	}
}

func TestExecutorWithTooLargeSchemaIsUnhealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		got := described(t, nil, func(res *executorv1.DescribeResponse) { res.PayloadSchema = endless() }).hello.GetDescription().GetExecutors()
		wantWithheld(t, got[0], "payload schema has 8388608 bytes; at most 65536 are allowed")
	})
}

// TestExecutorBeyondLimitsDoesNotHarmOthers has an executor of a node exceed a limit
// that dispatchers hold the whole node to.
func TestExecutorBeyondLimitsDoesNotHarmOthers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for name, test := range map[string]struct {
		change func(*executorv1.DescribeResponse)
		want   string
	}{
		"17 kinds": {
			func(res *executorv1.DescribeResponse) {
				for i := range 16 {
					res.Kinds = append(res.Kinds, fmt.Sprint("kind", i))
				}
			},
			"kinds has 17 entries, at most 16 are allowed",
		},
		"kind with a space": {
			func(res *executorv1.DescribeResponse) { res.Kinds = append(res.Kinds, "my runtime") },
			`kinds[1] is "my runtime": want at most 63 letters, digits, "-", "_" and "."`,
		},
		"long kind": {
			func(res *executorv1.DescribeResponse) { res.Kinds = []string{long} },
			"kinds[0] has 300 bytes, at most 256 are allowed",
		},
		"257 capabilities": {
			func(res *executorv1.DescribeResponse) { onlyCapabilities(res, make([]string, 257)) },
			"capabilities has 257 entries, at most 256 are allowed",
		},
		"long capability": {
			func(res *executorv1.DescribeResponse) { onlyCapabilities(res, []string{"logs", long}) },
			"capabilities[1] has 300 bytes, at most 256 are allowed",
		},
		"257 resources": {gpus(257), "resources.generic has 257 entries, at most 256 are allowed"},
		"long resource": {
			func(res *executorv1.DescribeResponse) {
				res.Resources = &Resources{Generic: []*GenericResource{{Kind: long}}}
			},
			"resources.generic[0].kind has 300 bytes, at most 256 are allowed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				node := described(t, nil, test.change, gpus(2)).hello.GetDescription()
				wantWithheld(t, node.GetExecutors()[0], test.want)
				wantReported(t, node.GetExecutors()[1])
				if n := len(node.GetResources().GetGeneric()); n != 2 {
					t.Errorf("node has %d generic resources, want the 2 of the other executor", n)
				}
			})
		})
	}
}

func TestNodeKeepsToLimitsOfAllExecutorsTogether(t *testing.T) {
	t.Parallel()
	t.Run("resources", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			node := described(t, func(cfg *workerd.Config) {
				cfg.Resources.Generic = []*GenericResource{{Kind: "slot"}}
			}, gpus(200), gpus(56), gpus(55), unchanged).hello.GetDescription()
			got := node.GetExecutors()
			wantWithheld(t, got[1], "resources.generic has 56 entries, 257 with those of the node and of the executors before it; at most 256 are allowed")
			wantReported(t, got[0], got[2], got[3])
			if n := len(node.GetResources().GetGeneric()); n != 256 {
				t.Errorf("node has %d generic resources, want 256", n)
			}
		})
	})
	t.Run("executors", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			all := slices.Repeat([]func(*executorv1.DescribeResponse){unchanged}, 33)
			got := described(t, nil, all...).hello.GetDescription().GetExecutors()
			if len(got) != 32 {
				t.Fatalf("%d executors, want 32", len(got))
			}
			wantReported(t, got...)
			if want := "node has 33 executors; at most 32 are allowed, and these are not reported: e32"; got[31].GetMessage() != want {
				t.Errorf("message %q, want %q", got[31].GetMessage(), want)
			}
		})
	})
	t.Run("schemas", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			got := described(t, nil, schema(64<<10), schema(64<<10), schema(1000), schema(64<<10-1), schema(64<<10), schema(64<<10)).hello.GetDescription().GetExecutors()
			for _, i := range []int{4, 5} {
				if e := got[i]; !strings.Contains(e.GetMessage(), "65536 of them in payload_schema") || !strings.HasSuffix(e.GetMessage(), "at most 262144 are allowed") {
					t.Errorf("message %q does not say which schema is too large", e.GetMessage())
				}
				wantWithheld(t, got[i], got[i].GetMessage())
			}
			wantReported(t, got[:4]...)
		})
	})
	t.Run("resources with long names", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			long := func(res *executorv1.DescribeResponse) {
				gpus(128)(res)
				for _, r := range res.Resources.Generic {
					r.Kind = strings.Repeat("x", 256)
					r.Resource = &GenericResource_Named{Named: r.Kind}
				}
				for range 240 {
					res.Capabilities = append(res.Capabilities, strings.Repeat("x", 256))
				}
			}
			node := described(t, nil, long, long, unchanged).hello.GetDescription()
			got := node.GetExecutors()
			wantWithheld(t, got[1], got[1].GetMessage())
			if !strings.HasSuffix(got[1].GetMessage(), "at most 262144 are allowed") {
				t.Errorf("message %q does not name the limit", got[1].GetMessage())
			}
			wantReported(t, got[0], got[2])
			if n := len(node.GetResources().GetGeneric()); n != 128 {
				t.Errorf("node has %d generic resources, want the 128 of the first executor", n)
			}
		})
	})
}

// TestTasksOfExecutorsBeyondLimitsKeepWorking restarts a worker whose task is held by
// an executor that is withheld, and adds a healthy executor of the same kind.
func TestTasksOfExecutorsBeyondLimitsKeepWorking(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, a := ableSet(t)
		a.lines = []string{"hello"}
		holder := contractv1.FromServer(&describing{sdk.NewServer(a), func(res *executorv1.DescribeResponse) {
			res.Name = "holder"
			gpus(257)(res)
		}})
		only, err := executor.NewFixed(t.Context(), holder)
		if err != nil {
			t.Fatal(err)
		}
		_, other := nullSet(t)
		both, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(other)), holder)
		if err != nil {
			t.Fatal(err)
		}
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		w := start(t, n, only, nil)
		s := d.await(t)
		s.welcome()
		task := nullTask("a", running, nil)
		s.assign(true, []assignment{task})
		settle(time.Second)
		s.wantLast(map[string]TaskState{"a": running})
		w.stop()

		start(t, n, both, nil)
		s = d.await(t)
		wantReported(t, s.hello.GetDescription().GetExecutors()[0])
		wantWithheld(t, s.hello.GetDescription().GetExecutors()[1], "resources.generic has 257 entries, at most 256 are allowed")
		s.welcome()
		s.assign(true, []assignment{task.known(running)})
		settle(time.Second)
		s.wantLast(map[string]TaskState{"a": running})
		s.logRequest("sub1", "a")
		settle(time.Second)
		if lines, _ := s.logged("sub1"); len(lines) != 1 || lines[0] != "a hello" {
			t.Errorf("logs are %q, want one line of the holder", lines)
		}
		s.assign(true, []assignment{task.known(running).desire(TaskState_SHUTDOWN)})
		settle(time.Minute)
		s.wantLast(map[string]TaskState{"a": TaskState_SHUTDOWN})
	})
}

// onlyCapabilities lets an executor have these capabilities, and none that the worker
// reports for what else the executor says.
func onlyCapabilities(res *executorv1.DescribeResponse, capabilities []string) {
	res.Capabilities, res.TaskGroups, res.TaskFiles, res.Signals, res.VolumeDrivers = capabilities, false, false, false, nil
}
