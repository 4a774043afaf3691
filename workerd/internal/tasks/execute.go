package tasks

import (
	"context"
	"errors"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/expand"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// shutdownSlack is what a shutdown may take beyond the grace period.
	shutdownSlack = 30 * time.Second
	// quickCall bounds the calls that should not take long.
	quickCall = time.Minute
	// patience is how many shutdowns are tried before the task is killed.
	patience = 3
	// firstPause and longestPause bound the pauses between attempts to stop or to
	// remove a task.
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// waitSettles is how long a renewed Wait must last before the error that was
	// reported is withdrawn.
	waitSettles = 2 * time.Second
)

// call is a call to the executor. It runs outside of the goroutine that owns the
// task. Once it has returned, it is the event that it has. Its fields never change
// once it is made, except where they say so.
type call struct {
	t      *task
	action action
	// kill is set once a task has not ended on several requests.
	kill   bool
	step   lifecycle.Step
	ctx    context.Context
	cancel context.CancelFunc
	// known is what the worker knew about the task before the call.
	known *record
	// description is what the executor is told about the task.
	description *executor.Task
	// context is what templates of the task can use, and invalid says why they cannot be
	// expanded.
	context expand.Context
	invalid error
	// networked is set for tasks with networks, and wanted is what Prepare reserves for
	// them.
	networked bool
	wanted    []network.Attachment
	// attachment is what the network plugin is told. It is nil for tasks without networks.
	attachment *network.Task
	// group is the executor that is called for a task with a group. It is nil for others,
	// and until execute has found the executor.
	group   *groups.Group
	started time.Time
	span    tracing.Span
	// observed is set once the executor has reported what happens during the call. It
	// belongs to the owner of the task.
	observed bool
	// holder is the name of the executor that was called. Like the result, execute sets it.
	holder string
	// changed and err are the result, which execute sets before the call is put in the
	// inbox. The changed function applies what the call has changed, if it succeeded.
	changed func(t *task)
	err     error
}

// newCall returns a call that executes an action.
func (t *task) newCall(what action, step lifecycle.Step) *call {
	c := &call{t: t, action: what, step: step, kill: t.attempts >= patience, known: t.current, networked: t.networked(), started: time.Now()}
	switch {
	case what == actPrepare, what == actAttach, what == actStart, what == actUpdate, t.grouped():
		c.description = t.describe()
		c.context, c.invalid = t.context, t.invalid
	}
	if what == actPrepare && c.networked {
		c.wanted = t.wantedAttachments()
	}
	if what == actAttach || what == actUpdate {
		c.attachment = t.attachment(c.known.place)
	}
	c.ctx, c.cancel = context.WithCancel(t.m.run)
	c.span = t.traceCall(what, c.started)
	return c
}

func (c *call) apply(t *task) {
	cancelled := c.ctx.Err() != nil
	c.cancel()
	t.call = nil
	switch {
	case c.err == nil:
		t.attempts = 0
		c.changed(t)
	case cancelled:
		// There is something else to do, or the worker ends.
		t.restoreMessage(c)
	default:
		t.restoreMessage(c)
		t.failed(c.action, c.err)
	}
	t.noteGroup(c.group)
	// Whatever came of the call, the executor may hold the task now if it was reached.
	if reached := c.err == nil || !executor.ErrorOf(c.err).NotCalled; reached && c.holder != t.current.executor && c.holder != "" {
		t.update(func(r *record) { r.executor = c.holder })
	}
	t.m.metrics.done(c.action, time.Since(c.started))
	c.span.End(traceError(t.current.status.Error))
}

// executor returns the executor to call.
func (c *call) executor() (*executor.Described, error) {
	e, err := c.t.executor(c.ctx, c.known.executor)
	if err != nil {
		return nil, err
	}
	c.holder = e.Name
	return c.grouped(e), nil
}

// ref names the task for the executor.
func (c *call) ref() executor.Ref { return executor.Ref{TaskID: c.t.id, Handle: c.known.handle} }

// execute makes the call.
func (c *call) execute() {
	switch c.action {
	case actPrepare:
		c.changed, c.err = c.prepare()
	case actAttach:
		c.changed, c.err = c.attach()
	case actDetach:
		c.changed, c.err = c.detach()
	case actStart:
		c.changed, c.err = c.start()
	case actWait:
		c.changed, c.err = c.wait()
	case actShutdown:
		c.changed, c.err = c.shutdown()
	case actAsk:
		c.changed, c.err = c.ask()
	case actLookUp:
		c.changed, c.err = c.lookUp()
	case actUpdate:
		c.changed, c.err = c.update()
	case actRemove:
		c.changed, c.err = c.remove()
	}
}

func (c *call) prepare() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.invalid, c.placeFiles(e)); err != nil {
		return nil, err
	}
	place, err := c.reserve(e)
	if err != nil {
		return nil, err
	}
	slow := c.reportSlow("executor " + e.Name)
	prepared, err := e.Executor.Prepare(c.ctx, c.description, c.known.handle)
	slow.Stop()
	if err != nil {
		return nil, err
	}
	if place != nil {
		return c.namespaced(e, place, prepared)
	}
	at := time.Now()
	return func(t *task) {
		t.move(c.step, at, func(r *record) { r.handle = prepared.Handle })
	}, nil
}

func (c *call) start() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	// The machine may have restarted since the task was prepared.
	if err := c.placeFiles(e); err != nil {
		return nil, err
	}
	stop, slow := c.observe(e), c.reportSlow("executor "+e.Name)
	res, err := e.Executor.Start(c.ctx, c.description, c.known.handle, c.known.place.network())
	slow.Stop()
	stop()
	if err != nil {
		return nil, err
	}
	c.forgetSignals()
	at := time.Now()
	return func(t *task) {
		t.move(c.step, at, func(r *record) {
			r.handle, r.status.Runtime = res.Handle, res.Runtime
			if r.place == nil {
				r.status.Ports = res.Ports
			}
		})
	}, nil
}

// wait waits for the end of the task.
func (c *call) wait() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	if c.known.status.Error != "" {
		// The executor was away, and that was reported. Once it has worked again for
		// a while, the error is withdrawn.
		settled := time.AfterFunc(waitSettles, func() { c.t.post(waitSettled{c}) })
		defer settled.Stop()
	}
	stop := c.observe(e)
	res, err := e.Executor.Wait(c.ctx, c.ref())
	stop()
	if err != nil {
		return nil, err
	}
	at := res.At
	if at.IsZero() {
		at = time.Now()
	}
	step, reason := c.step, groups.Failure(res)
	if reason != "" {
		reason = "task: " + reason
		step.To, step.Message = musterv1.TaskState_FAILED, "started"
	}
	return func(t *task) {
		t.move(step, at, func(r *record) {
			r.status.End(res.Runtime)
			r.status.Error = reason
		})
	}, nil
}

// waitSettled is the event that a renewed Wait has lasted for a while.
type waitSettled struct{ call *call }

func (e waitSettled) apply(t *task) {
	if t.call != e.call || e.call.ctx.Err() != nil {
		return
	}
	t.attempts = 0
	t.update(func(r *record) { r.status.Error = "" })
}

// shutdown asks the task to end. A task that does not end on several requests is
// killed.
func (c *call) shutdown() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	var runtime *musterv1.RuntimeStatus
	if c.kill {
		runtime, err = within(c.ctx, quickCall, func(ctx context.Context) (*musterv1.RuntimeStatus, error) {
			return e.Executor.Terminate(ctx, c.ref())
		})
	} else {
		var grace *time.Duration
		limit := defaults.StopGracePeriod
		if period := c.t.spec.GetContainer().GetStopGracePeriod(); period != nil {
			grace = new(period.AsDuration())
			limit = max(limit, *grace)
		}
		if c.group != nil {
			limit += c.group.Patience()
		}
		runtime, err = within(c.ctx, limit+shutdownSlack, func(ctx context.Context) (*musterv1.RuntimeStatus, error) {
			return e.Executor.Shutdown(ctx, c.ref(), grace)
		})
	}
	if err != nil {
		return nil, err
	}
	at := time.Now()
	return func(t *task) {
		t.move(c.step, at, func(r *record) { r.status.End(runtime) })
	}, nil
}

// update tells the executor what has changed around the task, if the executor
// wants to know.
func (c *call) update() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	attached, err := c.attachAgain()
	if err != nil {
		return nil, err
	}
	if err := c.placeFiles(e); err != nil {
		return nil, err
	}
	handle := c.known.handle
	if e.Can("update") {
		handle, err = within(c.ctx, quickCall, func(ctx context.Context) ([]byte, error) {
			return e.Executor.Update(ctx, c.description, c.known.handle)
		})
		if err != nil {
			return nil, err
		}
	}
	if err := c.sendSignals(e); err != nil {
		return nil, err
	}
	return func(t *task) {
		// A change that arrived during the call still has to be told.
		if t.description == c.description {
			t.phase = phaseHeld
		}
		if attached != nil {
			t.update(func(r *record) { r.status.Ports = attached.Ports })
		}
		if e.Can("update") {
			t.update(func(r *record) { r.handle = handle })
		}
	}, nil
}

// remove removes what the executor holds of the task.
func (c *call) remove() (func(t *task), error) {
	e, err := c.executor()
	if err != nil {
		return nil, err
	}
	_, err = within(c.ctx, quickCall, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, e.Executor.Remove(ctx, c.ref())
	})
	if err != nil {
		return nil, err
	}
	return func(t *task) { t.phase = phaseRemoved }, nil
}
