package tasks

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

var _ executor.Executor = (*worker)(nil)

func unknown(id string) error {
	return &executor.Error{Code: codes.NotFound, Err: fmt.Errorf("no task %s", id)}
}

// Describe says what the executor is.
func (w *worker) Describe(context.Context) (*executor.About, error) {
	return &executor.About{Name: "fake", Healthy: true, Kinds: []string{kind}, Capabilities: w.capabilities}, nil
}

// Signal notes the signal.
func (w *worker) Signal(ctx context.Context, ref executor.Ref, signal string) error {
	return w.call(ctx, "signal", ref.TaskID, func() error {
		if w.held[ref.TaskID] == nil {
			return unknown(ref.TaskID)
		}
		w.signals[ref.TaskID] = append(w.signals[ref.TaskID], signal)
		return nil
	})
}

func (w *worker) Prepare(ctx context.Context, task *executor.Task, _ []byte) (*executor.Prepared, error) {
	id := task.ID
	err := w.call(ctx, "prepare", id, func() error {
		w.wantStored(taskOf(task), preparing)
		if w.held[id] == nil {
			w.held[id] = &heldTask{state: executor.StatePrepared, told: task, ended: make(chan struct{})}
		}
		return nil
	})
	prepared := &executor.Prepared{Handle: []byte("prepared")}
	if task.Networked {
		prepared.Namespace = "/run/netns/" + id
	}
	return prepared, err
}

func (w *worker) Start(ctx context.Context, task *executor.Task, _ []byte, network *executor.TaskNetwork) (*executor.Started, error) {
	id := task.ID
	res := &executor.Started{Handle: []byte("started")}
	err := w.call(ctx, "start", id, func() error {
		// A worker that lost its state finds a group by its main container.
		if main := w.held[task.SharesNetworkOf]; main == nil || main.state == executor.StatePrepared {
			w.wantStored(taskOf(task), starting)
		}
		w.wantConnected(taskOf(task), task, network)
		w.wantOrder(id)
		h := w.held[id]
		if h == nil {
			return unknown(id)
		}
		if h.state == executor.StatePrepared {
			h.state, h.told = executor.StateRunning, task
			w.starts[id]++
			if code, ends := w.exits[id]; ends {
				h.end(code)
			}
		}
		res.Runtime = h.runtime()
		return nil
	})
	return res, err
}

func (w *worker) Wait(ctx context.Context, ref executor.Ref) (*executor.Ended, error) {
	id := ref.TaskID
	var res *executor.Ended
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
		res = &executor.Ended{At: time.Now()}
		if !w.mute {
			res.Runtime = h.runtime()
		}
		return nil
	})
	return res, err
}

func (w *worker) Update(ctx context.Context, task *executor.Task, _ []byte) ([]byte, error) {
	id := task.ID
	err := w.call(ctx, "update", id, func() error {
		if w.held[id] == nil {
			return unknown(id)
		}
		w.held[id].told = task
		return nil
	})
	return []byte("updated"), err
}

func (w *worker) Shutdown(ctx context.Context, ref executor.Ref, _ *time.Duration) (status *musterv1.RuntimeStatus, err error) {
	err = w.call(ctx, "shutdown", ref.TaskID, func() error {
		h := w.held[ref.TaskID]
		if h != nil && h.state == executor.StateRunning {
			h.end(143)
		}
		if !w.mute {
			status = h.runtime()
		}
		return nil
	})
	return status, err
}

func (w *worker) Terminate(ctx context.Context, ref executor.Ref) (status *musterv1.RuntimeStatus, err error) {
	err = w.call(ctx, "terminate", ref.TaskID, func() error {
		h := w.held[ref.TaskID]
		if h != nil && h.state == executor.StateRunning {
			h.end(137)
		}
		status = h.runtime()
		return nil
	})
	return status, err
}

func (w *worker) Remove(ctx context.Context, ref executor.Ref) error {
	return w.call(ctx, "remove", ref.TaskID, func() error {
		delete(w.held, ref.TaskID)
		return nil
	})
}

func (w *worker) List(ctx context.Context, _ string) (all []executor.Listed, err error) {
	err = w.call(ctx, "list", "", func() error {
		for id, h := range w.held {
			all = append(all, executor.Listed{
				Ref: executor.Ref{TaskID: id, Handle: []byte("listed")}, State: h.state, Runtime: h.runtime(),
			})
		}
		return nil
	})
	return all, err
}

func (w *worker) Logs(_ context.Context, _ executor.Ref, _ *musterv1.LogOptions, emit func(*executor.LogLine) error) error {
	return emit(&executor.LogLine{Data: []byte("line")})
}

// Observe reports what the test says, if anything. The stream ends at a nil
// observation, with the next fault of "observe" if there is one.
func (w *worker) Observe(ctx context.Context, _ executor.Ref, emit func(*executor.Observation) error) error {
	for {
		select {
		case res := <-w.observations:
			if res == nil {
				return w.nextError("observe")
			}
			if err := emit(res); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
