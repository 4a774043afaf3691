package contractv1

import (
	"context"
	"errors"
	"fmt"
	"io"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/workerd/executor"
)

// FromPlugin makes an Executor of a plugin that has been started.
func FromPlugin(plugin goplugin.ClientProtocol) (executor.Executor, error) {
	client, err := handshake.Dispense(plugin)
	if err != nil {
		return nil, fmt.Errorf("find the executor service: %w", err)
	}
	return &adapter{&remote{client}}, nil
}

// remote is the service of another process.
type remote struct {
	client executorv1.ExecutorServiceClient
}

func (r *remote) Describe(ctx context.Context, req *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	return r.client.Describe(ctx, req)
}

func (r *remote) Prepare(ctx context.Context, req *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error) {
	return r.client.Prepare(ctx, req)
}

func (r *remote) Start(ctx context.Context, req *executorv1.StartRequest) (*executorv1.StartResponse, error) {
	return r.client.Start(ctx, req)
}

func (r *remote) Wait(ctx context.Context, req *executorv1.WaitRequest) (*executorv1.WaitResponse, error) {
	return r.client.Wait(ctx, req)
}

func (r *remote) Update(ctx context.Context, req *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error) {
	return r.client.Update(ctx, req)
}

func (r *remote) Shutdown(ctx context.Context, req *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error) {
	return r.client.Shutdown(ctx, req)
}

func (r *remote) Terminate(ctx context.Context, req *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error) {
	return r.client.Terminate(ctx, req)
}

func (r *remote) Remove(ctx context.Context, req *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error) {
	return r.client.Remove(ctx, req)
}

func (r *remote) List(ctx context.Context, req *executorv1.ListRequest) (*executorv1.ListResponse, error) {
	return r.client.List(ctx, req)
}

func (r *remote) Signal(ctx context.Context, req *executorv1.SignalRequest) (*executorv1.SignalResponse, error) {
	return r.client.Signal(ctx, req)
}

func (r *remote) ListVolumes(ctx context.Context, req *executorv1.ListVolumesRequest) (*executorv1.ListVolumesResponse, error) {
	return r.client.ListVolumes(ctx, req)
}

func (r *remote) RemoveVolume(ctx context.Context, req *executorv1.RemoveVolumeRequest) (*executorv1.RemoveVolumeResponse, error) {
	return r.client.RemoveVolume(ctx, req)
}

func (r *remote) logs(ctx context.Context, req *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error {
	return receive(ctx, r.client.Logs, req, send)
}

func (r *remote) observe(ctx context.Context, req *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error {
	return receive(ctx, r.client.Observe, req, send)
}

// receive makes a call whose responses are passed to send one by one.
func receive[Req, Res any](
	ctx context.Context, method func(context.Context, Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Res], error), req Req, send func(*Res) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	responses, err := method(ctx, req)
	if err != nil {
		return err
	}
	for {
		res, err := responses.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(res); err != nil {
			return err
		}
	}
}
