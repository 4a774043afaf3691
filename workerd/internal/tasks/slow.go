package tasks

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// slowCall is how long preparing or starting a task may take before its status
// says so. Neither has a limit: an image may be large.
const slowCall = 10 * time.Second

// slowly makes a call that has no limit. While the call takes long, the task's
// status names the executor, because a task whose executor hangs would look like
// one that is about to run. An executor that reports what it observes has answered.
func slowly[T any](c *call, e *executor.Described, make func() (T, error)) (T, error) {
	timer := time.AfterFunc(slowCall, func() { c.t.post(callSlow{c, e.Name}) })
	defer timer.Stop()
	return make()
}

// callSlow is the event that a call takes long.
type callSlow struct {
	call     *call
	executor string
}

func (e callSlow) apply(t *task) {
	if t.call != e.call || e.call.observed || t.goal >= musterv1.TaskState_REMOVE {
		return
	}
	text := fmt.Sprintf("executor %s has not answered to %s within %s; it is given more time", e.executor, e.call.action, slowCall)
	t.m.log.Warn("executor is slow", zap.String("task", t.id), zap.String("error", text))
	t.update(func(r *record) { r.status.Error = text })
}
