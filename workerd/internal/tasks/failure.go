package tasks

import (
	"time"

	"go.uber.org/zap"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// fatal notes an error that no further attempt can mend.
func (t *task) fatal(what action, e *wire.Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	log := t.m.log.With(zap.String("task", t.id), zap.Stringer("call", what), zap.Error(e))
	switch {
	case what == actUpdate:
		// The task runs on as it is.
		log.Warn("executor refuses to update a task")
		t.update = false
		return
	case what == actRemove:
		// If the executor still has it, it is found by List at the next start
		// of the worker.
		log.Error("executor refuses to remove a task, which is forgotten")
		t.removed = true
		return
	}
	log.Info("task failed")
	t.adopt = false
	t.status.Move(lifecycle.Failure(t.status.State), time.Now(), t.status.Message)
	t.status.Error = e.Error()
	t.status.NodeToBlame = e.Blame == executorv1.ExecutorError_NODE
	t.dirty = true
}

// temporary notes an error that may pass, and returns how long to wait before
// the next attempt.
func (t *task) temporary(what action, e *wire.Error) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.attempts++
	// A plugin that is started again interrupts Wait once. That is nothing
	// that a user wants to hear of.
	quiet := what == actWait && t.attempts == 1
	if text := e.Error(); !quiet && text != t.status.Error {
		t.m.log.Warn("task has to wait", zap.String("task", t.id), zap.Stringer("call", what), zap.Error(e))
		t.status.Error = text
		t.dirty = true
	}
	pause := e.Delay()
	if what == actRemove || what == actShutdown {
		pause = min(pause<<min(t.attempts-1, 5), max(pause, longestPause))
	}
	return pause
}
