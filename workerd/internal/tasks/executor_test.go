package tasks

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
)

var _ executor.Executor = (*worker)(nil)

func unknown(id string) error {
	return &wire.Error{Code: codes.NotFound, Err: fmt.Errorf("no task %s", id)}
}

// Describe says what the executor is.
func (w *worker) Describe(context.Context, *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	return &executorv1.DescribeResponse{Name: "fake", Healthy: true, Kinds: []string{kind}, Capabilities: w.capabilities}, nil
}

func (w *worker) Prepare(ctx context.Context, req *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error) {
	id := req.GetTask().GetId()
	err := w.call(ctx, "prepare", id, func() error {
		w.wantStored(id, preparing)
		if w.held[id] == nil {
			w.held[id] = &heldTask{state: executorv1.ListedTask_PREPARED, told: req.GetTask(), ended: make(chan struct{})}
		}
		return nil
	})
	return &executorv1.PrepareResponse{Handle: []byte("prepared")}, err
}

func (w *worker) Start(ctx context.Context, req *executorv1.StartRequest) (*executorv1.StartResponse, error) {
	id := req.GetTask().GetId()
	res := &executorv1.StartResponse{Handle: []byte("started")}
	err := w.call(ctx, "start", id, func() error {
		w.wantStored(id, starting)
		h := w.held[id]
		if h == nil {
			return unknown(id)
		}
		if h.state == executorv1.ListedTask_PREPARED {
			h.state, h.told = executorv1.ListedTask_RUNNING, req.GetTask()
			w.starts[id]++
		}
		res.Runtime = h.runtime()
		return nil
	})
	return res, err
}

func (w *worker) Wait(ctx context.Context, req *executorv1.WaitRequest) (*executorv1.WaitResponse, error) {
	id := req.GetTaskId()
	var res *executorv1.WaitResponse
	err := w.call(ctx, "wait", id, func() error {
		h := w.held[id]
		if h == nil {
			return unknown(id)
		}
		w.mu.Unlock()
		select {
		case <-h.ended:
		case <-ctx.Done():
		}
		w.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		res = &executorv1.WaitResponse{EndedAt: timestamppb.Now()}
		if !w.mute {
			res.Runtime = h.runtime()
		}
		return nil
	})
	return res, err
}

func (w *worker) Update(ctx context.Context, req *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error) {
	id := req.GetTask().GetId()
	err := w.call(ctx, "update", id, func() error {
		if w.held[id] == nil {
			return unknown(id)
		}
		w.held[id].told = req.GetTask()
		return nil
	})
	return &executorv1.UpdateResponse{Handle: []byte("updated")}, err
}

func (w *worker) Shutdown(ctx context.Context, req *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error) {
	res := &executorv1.ShutdownResponse{}
	err := w.call(ctx, "shutdown", req.GetTaskId(), func() error {
		h := w.held[req.GetTaskId()]
		if h != nil && h.state == executorv1.ListedTask_RUNNING {
			h.end(143)
		}
		if !w.mute {
			res.Runtime = h.runtime()
		}
		return nil
	})
	return res, err
}

func (w *worker) Terminate(ctx context.Context, req *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error) {
	res := &executorv1.TerminateResponse{}
	err := w.call(ctx, "terminate", req.GetTaskId(), func() error {
		h := w.held[req.GetTaskId()]
		if h != nil && h.state == executorv1.ListedTask_RUNNING {
			h.end(137)
		}
		res.Runtime = h.runtime()
		return nil
	})
	return res, err
}

func (w *worker) Remove(ctx context.Context, req *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error) {
	err := w.call(ctx, "remove", req.GetTaskId(), func() error {
		delete(w.held, req.GetTaskId())
		return nil
	})
	return &executorv1.RemoveResponse{}, err
}

func (w *worker) List(ctx context.Context, _ *executorv1.ListRequest) (*executorv1.ListResponse, error) {
	res := &executorv1.ListResponse{}
	err := w.call(ctx, "list", "", func() error {
		for id, h := range w.held {
			res.Tasks = append(res.Tasks, &executorv1.ListedTask{
				TaskId: id, State: h.state, Handle: []byte("listed"), Runtime: h.runtime(),
			})
		}
		return nil
	})
	return res, err
}

func (w *worker) Logs(_ context.Context, _ *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error {
	return send(&executorv1.LogsResponse{Data: []byte("line")})
}

// Observe reports what the test says, if anything. The stream ends at a nil
// observation, with the next fault of "observe" if there is one.
func (w *worker) Observe(ctx context.Context, _ *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error {
	for {
		select {
		case res := <-w.observations:
			if res == nil {
				return w.nextError("observe")
			}
			if err := send(res); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
