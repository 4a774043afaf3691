package cli_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
)

// written is a cluster whose tasks wrote a line each.
type written struct {
	musterv1.UnimplementedControlServiceServer
	services []*musterv1.Service
	tasks    []*musterv1.Task
	removed  []string
}

func (w *written) RemoveTask(_ context.Context, req *musterv1.RemoveTaskRequest) (*musterv1.RemoveTaskResponse, error) {
	if !slices.ContainsFunc(w.tasks, func(t *musterv1.Task) bool { return t.Id == req.Task }) {
		return nil, status.Errorf(codes.NotFound, "there is no task %q", req.Task)
	}
	w.removed = append(w.removed, req.Task)
	return &musterv1.RemoveTaskResponse{}, nil
}

func (w *written) GetService(_ context.Context, req *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	for _, s := range w.services {
		if strings.EqualFold(s.Spec.Name, req.Service) || strings.HasPrefix(s.Id, req.Service) {
			return &musterv1.GetServiceResponse{Service: s}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no service %q", req.Service)
}

func (w *written) GetTask(_ context.Context, req *musterv1.GetTaskRequest) (*musterv1.GetTaskResponse, error) {
	for _, t := range w.tasks {
		if t.Name == req.Task || strings.HasPrefix(t.Id, req.Task) {
			return &musterv1.GetTaskResponse{Task: t}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no task %q", req.Task)
}

func (w *written) ListTasks(_ context.Context, req *musterv1.ListTasksRequest) (*musterv1.ListTasksResponse, error) {
	return &musterv1.ListTasksResponse{Tasks: slices.DeleteFunc(slices.Clone(w.tasks), func(t *musterv1.Task) bool {
		return !slices.Contains(req.Services, t.ServiceId)
	})}, nil
}

func (w *written) ListNodes(context.Context, *musterv1.ListNodesRequest) (*musterv1.ListNodesResponse, error) {
	return &musterv1.ListNodesResponse{Nodes: []*musterv1.Node{{Id: "n1", Description: &musterv1.NodeDescription{Hostname: "alpha.example"}}}}, nil
}

func (w *written) ServiceLogs(req *musterv1.ServiceLogsRequest, s grpc.ServerStreamingServer[musterv1.ServiceLogsResponse]) error {
	return s.Send(&musterv1.ServiceLogsResponse{Message: &musterv1.LogMessage{
		Source: "web.1", TaskId: "0k2fgm4tq8xwyz", NodeName: "alpha.example", Data: []byte("service " + req.Service + options(req.Options)),
	}})
}

func (w *written) TaskLogs(req *musterv1.TaskLogsRequest, s grpc.ServerStreamingServer[musterv1.TaskLogsResponse]) error {
	return s.Send(&musterv1.TaskLogsResponse{Message: &musterv1.LogMessage{Data: []byte("task " + req.Task + options(req.Options))}})
}

func options(o *musterv1.LogOptions) string {
	if o.GetFollow() && o.GetTail() == 5 {
		return " -f -n 5"
	}
	return ""
}

// TestLogsFindServicesAndTasks names services and tasks in every way that people are
// shown them.
func TestLogsFindServicesAndTasks(t *testing.T) {
	t.Parallel()
	at := func(s int64) *musterv1.Meta { return &musterv1.Meta{CreatedAt: timestamppb.New(time.Unix(s, 0))} }
	task := func(id, service string, slot uint64, created int64, desired musterv1.TaskState) *musterv1.Task {
		return &musterv1.Task{Id: id, ServiceId: service + "-id", ServiceName: service, Slot: slot, NodeId: "n1", Meta: at(created), DesiredState: desired, Name: service + "." + id, Spec: &musterv1.TaskSpec{Group: []*musterv1.GroupContainer{{Name: "proxy"}}}}
	}
	const running, shutdown = musterv1.TaskState_RUNNING, musterv1.TaskState_SHUTDOWN
	w := &written{
		services: []*musterv1.Service{
			{Id: "web-id", Spec: &musterv1.ServiceSpec{Name: "web", Task: &musterv1.TaskSpec{Group: []*musterv1.GroupContainer{{Name: "proxy", Role: musterv1.GroupContainer_SIDECAR}}}}}, {Id: "a.b-id", Spec: &musterv1.ServiceSpec{Name: "a.b"}}, {Id: "0same", Spec: &musterv1.ServiceSpec{Name: "other"}},
		},
		tasks: []*musterv1.Task{
			task("old", "web", 1, 1, shutdown), task("now", "web", 1, 2, running), task("late", "web", 1, 3, shutdown), task("two", "web", 2, 1, running),
			task("everywhere", "a.b", 0, 1, running), task("0sam", "web", 3, 1, running),
		},
	}
	server, _ := daemon.NewServer(insecure.NewCredentials())
	musterv1.RegisterControlServiceServer(server, w)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Second) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	s := &shell{t: t, address: l.Addr().String()}
	for target, want := range map[string]string{
		"web": "service web-id", "web-id": "service web-id", "we": "service web-id", "a.b": "service a.b-id",
		"now": "task now", "no": "task now", "web.now": "task now",
		"web.1": "task now", "WEB.1": "task now", "web.1.ol": "task old", "web.1.old@alpha.example": "task old", "web.2": "task two",
		"a.b.alpha.example": "task everywhere", "a.b.n1": "task everywhere", "a.b.alpha.example.ever@alpha.example": "task everywhere",
	} {
		if out := s.must("logs", "--raw", target); out != want+"\n" {
			t.Errorf("logs %s shows %q, want %q", target, out, want)
		}
	}
	if out, want := s.must("logs", "-f", "-n", "5", "web"), "web.1.0k2fgm4tq8xw@alpha.example | service web-id -f -n 5\n"; out != want {
		t.Errorf("logs with flags show %q, want %q", out, want)
	}
	for _, target := range []string{"web", "web.1"} {
		if got, _ := s.complete("logs", target, "--container", ""); !slices.Equal(got, []string{"main", "proxy"}) {
			t.Errorf("logs %s --container completes with %q, want main and proxy", target, got)
		}
	}
	for _, name := range []string{"web.1", "WEB.1", "web.1.no", "web.now", "no"} {
		s.contains(s.must("task", "inspect", name), "Task:     now\n")
		if out := s.must("task", "logs", "--raw", name); out != "task now\n" {
			t.Errorf("task logs %s shows %q, want the task now", name, out)
		}
	}
	s.must("task", "rm", "web.2")
	if !slices.Equal(w.removed, []string{"two"}) {
		t.Errorf("task rm web.2 removed %q, want two", w.removed)
	}
	s.contains(s.fails(cli.ExitNotFound, "", "task", "inspect", "web.9"), `there is no task "web.9"`)
	for _, target := range []string{"nope", "web.9", "web.1.x", "nope.1", "a.b.beta"} {
		if _, errs, code := s.run("", "logs", target); code != cli.ExitNotFound || !strings.Contains(errs, `there is no service and no task "`+target+`"`) {
			t.Errorf("logs %s: exit code %d, %q", target, code, errs)
		}
	}
	if _, errs, code := s.run("", "logs", "0sa"); code != cli.ExitUsage || !strings.Contains(errs, "service other and of task web.0sam") {
		t.Errorf("an ambiguous prefix: exit code %d, %q", code, errs)
	}
}
