package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

const (
	// defaultGrace is a task's stop grace period if its spec names none.
	defaultGrace = 10 * time.Second
	// shutdownSlack is what a shutdown may take beyond the grace period.
	shutdownSlack = 30 * time.Second
	// quickCall bounds the calls that should not take long.
	quickCall = time.Minute
	// patience is how many shutdowns are tried before the task is killed.
	patience = 3
	// longestPause bounds the pauses between attempts to remove a task.
	longestPause = 30 * time.Second
	// waitSettles is how long a renewed Wait must last before the task counts
	// as looked after again.
	waitSettles = 2 * time.Second
)

// perform does one thing, and notes what came of it. It returns how long to
// wait before the next, and whether the task is gone for good.
func (t *task) perform(ctx context.Context, what action, step lifecycle.Step) (pause time.Duration, gone bool) {
	var err error
	switch what {
	case actPrepare:
		err = t.prepare(ctx, step)
	case actStart:
		err = t.start(ctx, step)
	case actWait:
		err = t.wait(ctx, step)
	case actShutdown:
		err = t.shutdown(ctx, step)
	case actUpdate:
		err = t.tell(ctx)
	case actAdopt:
		err = t.lookUp(ctx)
	case actRemove:
		err = t.remove(ctx)
	case actForget:
		return t.forget()
	}
	if err == nil {
		t.mu.Lock()
		t.attempts = 0
		t.mu.Unlock()
		return 0, false
	}
	if ctx.Err() != nil {
		// Cancelled: there is something else to do, or the worker ends.
		return 0, false
	}
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		e = &wire.Error{Code: codes.Unknown, Temporary: true, Err: err}
	}
	if !e.Temporary {
		t.fatal(what, e)
		return 0, false
	}
	return t.temporary(what, e), false
}

// executor returns the executor of the task's kind.
func (t *task) executor(ctx context.Context) (*executor.Described, error) {
	if t.owner != nil {
		return t.owner, nil
	}
	return t.m.cfg.Executors.For(ctx, executor.KindOf(t.spec))
}

// moved notes that the task has come further. What f sets is noted with it.
func (t *task) moved(step lifecycle.Step, at time.Time, f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.Move(step.To, at, step.Message)
	f()
	t.dirty = true
}

func (t *task) prepare(ctx context.Context, step lifecycle.Step) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	res, err := slowly(t, e, actPrepare, func() (*executorv1.PrepareResponse, error) {
		return e.Executor.Prepare(ctx, &executorv1.PrepareRequest{Task: t.describe(), Handle: t.handle})
	})
	if err != nil {
		return err
	}
	t.moved(step, time.Now(), func() { t.handle = res.GetHandle() })
	return nil
}

func (t *task) start(ctx context.Context, step lifecycle.Step) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	stop := t.observe(ctx, e, actStart)
	res, err := slowly(t, e, actStart, func() (*executorv1.StartResponse, error) {
		return e.Executor.Start(ctx, &executorv1.StartRequest{Task: t.describe(), Handle: t.handle})
	})
	stop()
	if err != nil {
		return err
	}
	t.moved(step, time.Now(), func() {
		t.handle = res.GetHandle()
		t.status.Runtime = res.GetRuntime()
		t.status.Ports = res.GetPorts()
	})
	return nil
}

// wait waits for the end of the task.
func (t *task) wait(ctx context.Context, step lifecycle.Step) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	failing, cancel := t.status.Error != "", t.cancel
	t.mu.Unlock()
	if failing {
		// The executor was away, and that was reported. Once it has been at
		// work again for a while, the error is withdrawn.
		settled := time.AfterFunc(waitSettles, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if ctx.Err() == nil {
				t.status.Error = ""
				t.dirty = true
				t.attempts = 0
				cancel()
			}
		})
		defer settled.Stop()
	}
	stop := t.observe(ctx, e, actWait)
	res, err := e.Executor.Wait(ctx, &executorv1.WaitRequest{TaskId: t.id, Handle: t.handle})
	stop()
	if err != nil {
		return err
	}
	at := time.Now()
	if ended := res.GetEndedAt(); ended.IsValid() {
		at = ended.AsTime()
	}
	reason := failure(res)
	if reason != "" {
		step.To, step.Message = musterv1.TaskState_FAILED, "started"
	}
	t.moved(step, at, func() {
		if res.GetRuntime() != nil {
			t.status.Runtime = res.GetRuntime()
		}
		t.status.Error = reason
	})
	return nil
}

// failure says why a task that ended counts as failed; empty if it does not.
func failure(res *executorv1.WaitResponse) string {
	code := res.GetRuntime().GetExitCode()
	switch {
	case res.GetError() != "":
		return "task: " + res.GetError()
	case res.GetRuntime().GetOomKilled():
		return fmt.Sprintf("task: out of memory, exit (%d)", code)
	case code != 0:
		return fmt.Sprintf("task: non-zero exit (%d)", code)
	}
	return ""
}

// shutdown asks the task to end. A task that does not end on several requests
// is killed.
func (t *task) shutdown(ctx context.Context, step lifecycle.Step) error {
	t.mu.Lock()
	attempts, touched := t.attempts, t.adopt || lifecycle.Touched(t.status.State)
	t.mu.Unlock()
	if !touched {
		held, err := t.held(ctx)
		if err != nil {
			return err
		}
		if !held {
			t.moved(step, time.Now(), func() {})
			return nil
		}
	}
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	grace := t.spec.GetContainer().GetStopGracePeriod()
	limit := max(grace.AsDuration(), defaultGrace) + shutdownSlack
	var runtime *musterv1.RuntimeStatus
	if attempts < patience {
		req := &executorv1.ShutdownRequest{TaskId: t.id, Handle: t.handle}
		if grace != nil {
			req.GracePeriod = durationpb.New(grace.AsDuration())
		}
		runtime, err = within(ctx, limit, func(ctx context.Context) (*musterv1.RuntimeStatus, error) {
			res, err := e.Executor.Shutdown(ctx, req)
			return res.GetRuntime(), err
		})
	} else {
		runtime, err = within(ctx, quickCall, func(ctx context.Context) (*musterv1.RuntimeStatus, error) {
			res, err := e.Executor.Terminate(ctx, &executorv1.TerminateRequest{TaskId: t.id, Handle: t.handle})
			return res.GetRuntime(), err
		})
	}
	if err != nil {
		return err
	}
	t.moved(step, time.Now(), func() {
		if runtime != nil {
			t.status.Runtime = runtime
		}
	})
	return nil
}

// tell tells the executor of changed surroundings, if it wants to know.
func (t *task) tell(ctx context.Context) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	told := t.describe()
	handle := t.handle
	if e.Can("update") {
		handle, err = within(ctx, quickCall, func(ctx context.Context) ([]byte, error) {
			res, err := e.Executor.Update(ctx, &executorv1.UpdateRequest{Task: told, Handle: t.handle})
			return res.GetHandle(), err
		})
		if err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	// If they changed again meanwhile, told is not the newest.
	t.update = t.told != told
	if e.Can("update") {
		t.handle = handle
		t.dirty = true
	}
	return nil
}

// remove removes what the executor holds of the task.
func (t *task) remove(ctx context.Context) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	_, err = within(ctx, quickCall, func(ctx context.Context) (struct{}, error) {
		_, err := e.Executor.Remove(ctx, &executorv1.RemoveRequest{TaskId: t.id, Handle: t.handle})
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.removed = true
	t.mu.Unlock()
	return nil
}

// forget ends the life of the task in this worker.
func (t *task) forget() (pause time.Duration, gone bool) {
	if !t.orphan {
		if err := t.m.keep(nil, taskdb.Change{ID: t.id, Forget: true}); err != nil {
			t.mu.Lock()
			first := t.attempts == 0
			t.attempts++
			t.mu.Unlock()
			if first {
				t.m.log.Error("removed task is not forgotten yet", zap.String("task", t.id), zap.Error(err))
			}
			return storeRetry, false
		}
	}
	t.m.forget(t)
	return 0, true
}

// within makes a call that has a deadline of its own.
func within[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := call(inner)
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		err = &wire.Error{
			Code: codes.DeadlineExceeded, Temporary: true,
			Err: fmt.Errorf("executor did not answer within %s", limit),
		}
	}
	return res, err
}
