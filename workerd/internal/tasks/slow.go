package tasks

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

// slowCall is how long a task is prepared or started before its status tells
// that this takes long. Neither has a limit: an image may be large.
const slowCall = 10 * time.Second

// slowly makes a call that has no limit. While it takes long, the task's status
// names the executor that is waited for: one that hangs would look like a task
// that is just about to run.
func slowly[T any](t *task, e *executor.Described, what action, call func() (T, error)) (T, error) {
	var telling sync.WaitGroup
	telling.Add(1)
	timer := time.AfterFunc(slowCall, func() {
		defer telling.Done()
		t.tellSlow(fmt.Sprintf("executor %s has not answered to %s within %s; it is given more time", e.Name, what, slowCall))
	})
	res, err := call()
	if timer.Stop() {
		telling.Done()
	}
	// After the call the status is the caller's alone.
	telling.Wait()
	return res, err
}

// tellSlow reports that a call takes long, unless the executor has reported what
// it is waiting for.
func (t *task) tellSlow(text string) {
	told := t.amend(func(s *lifecycle.Status) bool {
		if t.progressing {
			return false
		}
		s.Error = text
		return true
	})
	if told {
		t.m.log.Warn("executor is slow", zap.String("task", t.id), zap.String("error", text))
	}
}

// amend changes the status of a task while a call is open, and reports it. The
// change is made with t.mu held, and returns whether it changed anything.
func (t *task) amend(change func(*lifecycle.Status) bool) bool {
	// Changes are kept one after the other, so that the newest is kept last.
	t.amending.Lock()
	defer t.amending.Unlock()
	t.mu.Lock()
	if t.withdrawn || t.orphan || !change(&t.status) {
		t.mu.Unlock()
		return false
	}
	t.dirty = true
	status, handle := t.status, t.handle
	t.mu.Unlock()
	if err := t.m.keep(nil, taskdb.Change{ID: t.id, Status: status.Report(t.id), Handle: handle}); err != nil {
		// It is still dirty, and is kept when the call is over.
		t.m.log.Error("failed to persist task status", zap.String("task", t.id), zap.Error(err))
		return true
	}
	t.mu.Lock()
	t.kept = status
	t.mu.Unlock()
	t.m.cfg.Changed(t.id, true)
	return true
}
