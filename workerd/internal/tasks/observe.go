package tasks

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// observePause is how long at least the worker waits between two reports of what
// an executor observes. Only the newest observation is reported.
const observePause = 2 * time.Second

// observe reports what the executor says of the task beside a call. The caller
// must call stop when the call has returned. After that the task's status is
// the caller's alone.
func (t *task) observe(ctx context.Context, e *executor.Described, what action) (stop func()) {
	t.mu.Lock()
	t.progressing = false
	message := t.status.Message
	req := &executorv1.ObserveRequest{TaskId: t.id, Handle: t.handle}
	t.mu.Unlock()
	if !e.Can("observe") {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	// newest holds the newest observation that is not reported yet.
	newest := make(chan *executorv1.ObserveResponse, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(newest)
		receiveObservations(ctx, e.Executor, req, newest)
	})
	wg.Go(func() {
		for res := range newest {
			t.observed(what, res)
			select {
			case <-time.After(observePause):
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.status.Message = message
	}
}

// receiveObservations puts observations into newest, which has room for one,
// until the stream ends.
func receiveObservations(ctx context.Context, e executor.Executor, req *executorv1.ObserveRequest, newest chan *executorv1.ObserveResponse) {
	for {
		err := e.Observe(ctx, req, func(res *executorv1.ObserveResponse) error {
			select {
			case <-newest:
			default:
			}
			newest <- res
			return nil
		})
		var said *wire.Error
		if !errors.As(wire.FromStatus(err), &said) || !said.Temporary {
			return
		}
		select {
		case <-time.After(max(said.Delay(), observePause)):
		case <-ctx.Done():
			return
		}
	}
}

// observed reports one observation if it says something new.
func (t *task) observed(what action, res *executorv1.ObserveResponse) {
	t.amend(func(s *lifecycle.Status) (changed bool) {
		t.progressing = true
		if runtime := res.GetRuntime(); runtime != nil && !proto.Equal(runtime, s.Runtime) {
			s.Runtime, changed = runtime, true
		}
		if what != actStart {
			return changed
		}
		if message := res.GetMessage(); message != "" && message != s.Message {
			s.Message, changed = message, true
		}
		if text := res.GetError(); text != s.Error {
			s.Error, changed = text, true
		}
		return changed
	})
}
