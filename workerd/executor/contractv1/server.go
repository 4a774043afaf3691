package contractv1

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// FromServer makes an Executor of an implementation of the executor service,
// with nothing in between.
func FromServer(server executorv1.ExecutorServiceServer) executor.Executor {
	return &adapter{&served{server}}
}

type served struct {
	executorv1.ExecutorServiceServer
}

func (s *served) logs(ctx context.Context, req *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error {
	return s.Logs(req, &sendStream[executorv1.LogsResponse]{ctx: ctx, send: send})
}

func (s *served) observe(ctx context.Context, req *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error {
	return s.Observe(req, &sendStream[executorv1.ObserveResponse]{ctx: ctx, send: send})
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
