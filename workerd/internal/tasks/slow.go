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

// reportSlow has the task's status name the executor if the call takes long, because
// a task whose executor hangs would look like one that is about to run. An executor
// that reports what it observes has answered. The caller must stop the timer when
// the call has returned.
func (c *call) reportSlow(e *executor.Described) *time.Timer {
	return time.AfterFunc(slowCall, func() { c.t.post(callSlow{c, e.Name}) })
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
