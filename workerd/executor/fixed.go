package executor

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Fixed is a set of executors that live in this process and never change.
type Fixed struct {
	all []*Described
}

var _ Set = (*Fixed)(nil)

// NewFixed asks executors what they are, and makes a set of them.
func NewFixed(ctx context.Context, executors ...Executor) (*Fixed, error) {
	set := &Fixed{}
	for i, e := range executors {
		res, err := e.Describe(ctx, &executorv1.DescribeRequest{})
		if err != nil {
			return nil, fmt.Errorf("describe executor %d: %w", i, err)
		}
		set.all = append(set.all, FromResponse(e, res))
	}
	return set, nil
}

// For returns the executor that runs a kind of runtime.
func (f *Fixed) For(_ context.Context, kind string) (*Described, error) {
	for _, d := range f.all {
		if d.Runs(kind) {
			return d, nil
		}
	}
	return nil, NoExecutor(kind)
}

// Describe returns what the executors said of themselves at first.
func (f *Fixed) Describe(context.Context) []*Described { return f.all }

// Changes never receives.
func (f *Fixed) Changes() <-chan struct{} { return nil }

// NoExecutor is the error of a set that has no executor for a kind and is not
// going to have one: fatal to the task, and no fault of its spec.
func NoExecutor(kind string) error {
	return &wire.Error{
		Code:  codes.FailedPrecondition,
		Blame: wire.BlameNode,
		Err:   fmt.Errorf("no executor on this node runs %q", kind),
	}
}

// FromServer makes an Executor of an implementation of the executor service,
// with nothing in between.
func FromServer(server executorv1.ExecutorServiceServer) Executor {
	return &served{ExecutorServiceServer: server}
}

type served struct {
	executorv1.ExecutorServiceServer
}

func (s *served) Logs(ctx context.Context, req *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error {
	return s.ExecutorServiceServer.Logs(req, &sendStream[executorv1.LogsResponse]{ctx: ctx, send: send})
}

func (s *served) Observe(ctx context.Context, req *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error {
	return s.ExecutorServiceServer.Observe(req, &sendStream[executorv1.ObserveResponse]{ctx: ctx, send: send})
}

// sendStream is the server's side of a stream that leads to a function.
type sendStream[Res any] struct {
	ctx  context.Context
	send func(*Res) error
}

var (
	_ grpc.ServerStreamingServer[executorv1.LogsResponse]    = (*sendStream[executorv1.LogsResponse])(nil)
	_ grpc.ServerStreamingServer[executorv1.ObserveResponse] = (*sendStream[executorv1.ObserveResponse])(nil)
)

func (s *sendStream[Res]) Send(res *Res) error          { return s.send(res) }
func (s *sendStream[Res]) Context() context.Context     { return s.ctx }
func (s *sendStream[Res]) SetHeader(metadata.MD) error  { return nil }
func (s *sendStream[Res]) SendHeader(metadata.MD) error { return nil }
func (s *sendStream[Res]) SetTrailer(metadata.MD)       {}

func (s *sendStream[Res]) SendMsg(m any) error {
	res, ok := m.(*Res)
	if !ok {
		return fmt.Errorf("send a %T: want a %T", m, res)
	}
	return s.send(res)
}

func (s *sendStream[Res]) RecvMsg(any) error {
	return fmt.Errorf("receive from a stream that only sends")
}
