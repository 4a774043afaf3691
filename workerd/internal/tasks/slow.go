package tasks

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/workerd/executor"
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
	// Only one goroutine at a time keeps a status, so that the newest is kept last.
	telling.Wait()
	return res, err
}

// tellSlow reports an error of a call that is still under way.
func (t *task) tellSlow(text string) {
	t.mu.Lock()
	if t.withdrawn || t.orphan {
		t.mu.Unlock()
		return
	}
	t.status.Error = text
	t.dirty = true
	status, handle := t.status, t.handle
	t.mu.Unlock()
	t.m.log.Warn("executor is slow", zap.String("task", t.id), zap.String("error", text))
	if err := t.m.keep(nil, taskdb.Change{ID: t.id, Status: status.Report(t.id), Handle: handle}); err != nil {
		// It is dirty still, and kept when the call is over.
		t.m.log.Error("task state is not kept", zap.String("task", t.id), zap.Error(err))
		return
	}
	t.mu.Lock()
	t.kept = status
	t.mu.Unlock()
	t.m.cfg.Changed(t.id, true)
}
