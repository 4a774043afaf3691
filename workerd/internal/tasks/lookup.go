package tasks

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// lookUp finds out what happened to a task if the managers know a later state of it than
// this worker, because the worker's own state was lost.
func (c *call) lookUp() (func(t *task), error) {
	e, err := c.t.executor(c.ctx, c.known.executor)
	if err != nil {
		return nil, err
	}
	listed, found, err := c.t.m.inventory.find(c.ctx, e, c.t.id)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	// A running task whose addresses are unknown is lost, and one that no executor knows
	// is gone.
	lost := found && listed.State == executor.StateRunning && c.networked && c.known.place == nil
	gone := !found && c.known.status.State >= musterv1.TaskState_STARTING
	if lost || gone && c.hasGroup() {
		// A lost task must end, because its addresses may be given to others. So must the
		// other containers of a group whose main one is gone.
		_, err := within(c.ctx, quickCall, func(ctx context.Context) (*musterv1.RuntimeStatus, error) {
			return c.grouped(e).Executor.Terminate(ctx, executor.Ref{TaskID: c.t.id, Handle: listed.Handle})
		})
		if err != nil {
			return nil, err
		}
	}
	at := time.Now()
	return func(t *task) {
		known := t.state()
		t.m.log.Info("looked up a task of an earlier worker",
			zap.String("task", t.id), zap.Stringer("known", known), zap.Stringer("found", listed.State))
		t.phase = phaseHeld
		t.update(func(r *record) {
			switch {
			case gone:
				r.status.Move(lifecycle.Failure(known), at, "started")
				r.status.Error = "task lost: the worker's state was lost and no executor knows the task"
				r.status.NodeToBlame = true
			case lost:
				r.handle, r.executor = listed.Handle, e.Name
				r.status.Move(lifecycle.Failure(max(known, musterv1.TaskState_STARTING)), at, "started")
				r.status.Error = "task lost: the worker's state was lost, and with it the task's addresses"
				r.status.NodeToBlame = true
			case !found, listed.State == executor.StatePrepared:
				// Preparing again what is prepared changes nothing. States below the
				// known one are not reported.
				r.handle = listed.Handle
				r.status.State = musterv1.TaskState_ACCEPTED
				r.status.Move(musterv1.TaskState_PREPARING, at, "preparing")
			default:
				// It runs, or Wait will tell how it ended. The executor may have been
				// told of older surroundings.
				t.phase = phaseOutdated
				r.handle, r.executor = listed.Handle, e.Name
				r.status.Runtime = listed.Runtime
				r.status.State = min(known, musterv1.TaskState_STARTING)
				r.status.Move(musterv1.TaskState_RUNNING, at, "started")
			}
		})
	}, nil
}

// ask finds out whether an executor holds a task that this worker has not begun
// and that must stop. If no executor here runs its kind, none holds it.
func (c *call) ask() (func(t *task), error) {
	var listed executor.Listed
	found := false
	e, err := within(c.ctx, quickCall, func(ctx context.Context) (*executor.Described, error) { return c.t.executor(ctx, c.known.executor) })
	switch {
	case err == nil:
		if listed, found, err = c.t.m.inventory.find(c.ctx, e, c.t.id); err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
	case !executor.ErrorOf(err).Absent:
		return nil, err
	}
	return func(t *task) {
		if !found {
			t.phase = phaseUntouched
			return
		}
		t.phase = phaseHeld
		t.update(func(r *record) {
			r.handle, r.executor = listed.Handle, e.Name
			r.status.Runtime = listed.Runtime
		})
	}, nil
}
