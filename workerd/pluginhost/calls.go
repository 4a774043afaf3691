package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
)

// calls is an executor whose process may come and go.
type calls struct {
	plugin *plugin
}

var _ executor.Executor = (*calls)(nil)

// call makes one call, to whatever process runs now.
func call[Req, Res any](
	ctx context.Context, p *plugin, req Req,
	method func(executorv1.ExecutorServiceClient, context.Context, Req, ...grpc.CallOption) (Res, error),
) (Res, error) {
	i, err := p.service(ctx)
	if err != nil {
		var none Res
		return none, err
	}
	res, err := method(i.service, ctx, req)
	return res, p.blame(i, err)
}

// blame says of an error of a call whose it is. Where the process has ended
// it says that: a broken connection explains nothing.
func (p *plugin) blame(i *instance, err error) error {
	if err == nil {
		return nil
	}
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		e = &wire.Error{Code: codes.Unknown, Temporary: true, Err: err}
	}
	if e.Code == codes.Unavailable || e.Code == codes.Canceled {
		if ended := i.process.justEnded(); ended != nil {
			e = &wire.Error{Code: codes.Unavailable, Temporary: true, RetryAfter: firstPause, Err: fmt.Errorf("plugin's %w", ended)}
		}
	}
	return p.wrap(e)
}

func (c *calls) Describe(ctx context.Context, req *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Describe)
}

func (c *calls) Prepare(ctx context.Context, req *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Prepare)
}

func (c *calls) Start(ctx context.Context, req *executorv1.StartRequest) (*executorv1.StartResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Start)
}

func (c *calls) Wait(ctx context.Context, req *executorv1.WaitRequest) (*executorv1.WaitResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Wait)
}

func (c *calls) Update(ctx context.Context, req *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Update)
}

func (c *calls) Shutdown(ctx context.Context, req *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Shutdown)
}

func (c *calls) Terminate(ctx context.Context, req *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Terminate)
}

func (c *calls) Remove(ctx context.Context, req *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Remove)
}

func (c *calls) List(ctx context.Context, req *executorv1.ListRequest) (*executorv1.ListResponse, error) {
	return call(ctx, c.plugin, req, executorv1.ExecutorServiceClient.List)
}

func (c *calls) Logs(ctx context.Context, req *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error {
	return stream(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Logs, send)
}

func (c *calls) Observe(ctx context.Context, req *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error {
	return stream(ctx, c.plugin, req, executorv1.ExecutorServiceClient.Observe, send)
}

// stream makes a call whose responses are passed to send one by one.
func stream[Req, Res any](
	ctx context.Context, p *plugin, req Req,
	method func(executorv1.ExecutorServiceClient, context.Context, Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Res], error),
	send func(*Res) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	i, err := p.service(ctx)
	if err != nil {
		return err
	}
	responses, err := method(i.service, ctx, req)
	if err != nil {
		return p.blame(i, err)
	}
	for {
		res, err := responses.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return p.blame(i, err)
		}
		if err := send(res); err != nil {
			return err
		}
	}
}
