package tasks

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// failed notes that a call failed.
func (t *task) failed(what action, err error) {
	e := executor.ErrorOf(err)
	// Logs and traces must not hold a text without bounds either.
	if text := bounds.Text(e.Error(), nodereport.MaxStatusText); text != e.Error() {
		e.Err = errors.New(text)
	}
	if what == actDetach {
		// Addresses must not be given to others before the task is detached. A plugin that
		// is gone left nothing that it could detach; when it comes back, it is told that
		// nothing is known of the task.
		e.Temporary = !e.Absent
	}
	if e.Temporary {
		t.failedForNow(what, e)
	} else {
		t.failedForGood(what, e)
	}
}

// failedForGood notes an error that no further attempt can mend.
func (t *task) failedForGood(what action, e *executor.Error) {
	log := t.m.log.With(zap.String("task", t.id), zap.Stringer("call", what), zap.Error(e))
	switch what {
	case actUpdate:
		// The task runs on as it is.
		log.Warn("executor refuses to update a task")
		t.phase = phaseHeld
		return
	case actDetach:
		log.Error("network plugin that attached a task is gone; its addresses are free")
		t.update(func(r *record) { r.place = nil })
		return
	case actRemove:
		// If the executor still has it, its List finds it at the next start of the
		// worker.
		log.Error("executor refuses to remove a task; forgetting it")
		t.phase = phaseRemoved
		return
	case actAsk, actLookUp:
		t.phase = phaseHeld
	}
	log.Info("task failed")
	t.update(func(r *record) {
		r.status.Move(lifecycle.Failure(r.status.State), time.Now(), r.status.Message)
		r.status.End(nil)
		r.status.Error = e.Error()
		r.status.NodeToBlame = e.BlameNode
	})
}

// failedForNow notes an error that may pass, and when to try again.
func (t *task) failedForNow(what action, e *executor.Error) {
	t.attempts++
	// A plugin that is started again interrupts a call once. Users do not want to
	// hear of that while their task runs.
	quiet := (what == actWait || what == actUpdate) && t.attempts == 1
	if what == actDetach {
		// It says nothing about the task, which has ended.
		quiet = true
		if t.attempts == 1 {
			t.m.log.Warn("failed to detach a task from its networks; retrying", zap.String("task", t.id), zap.Error(e))
		}
	}
	if text := e.Error(); !quiet && text != t.current.status.Error {
		t.m.log.Warn("call to executor failed; retrying", zap.String("task", t.id), zap.Stringer("call", what), zap.Error(e))
		t.update(func(r *record) {
			r.status.Error = text
			r.status.Runtime = withoutHealth(r.status.Runtime)
		})
	}
	pause := e.Delay()
	if what == actRemove || what == actShutdown || what == actDetach {
		p := t.hasPauses()
		if p.backoff == nil {
			p.backoff = backoff.New(firstPause, longestPause)
		}
		pause = max(pause, p.backoff.Next())
	}
	t.retryIn(pause)
}

// noAnswer is the error of a call that took longer than its limit.
func noAnswer(limit time.Duration) error {
	return &executor.Error{
		Code: codes.DeadlineExceeded, Temporary: true,
		Err: fmt.Errorf("executor did not answer within %s", limit),
	}
}
