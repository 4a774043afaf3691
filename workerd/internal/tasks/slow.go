package tasks

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// slowCall is how long preparing, attaching or starting a task may take before its status
// says so. Neither has a limit: an image may be large.
const slowCall = 10 * time.Second

// reportSlow has the task's status name the callee if the call takes long, because
// a task whose plugin hangs would look like one that is about to run. An executor
// that reports what it observes has answered. The caller must stop the timer when
// the call has returned.
func (c *call) reportSlow(callee string) *time.Timer {
	return time.AfterFunc(slowCall, func() { c.t.post(callSlow{c, callee}) })
}

// callSlow is the event that a call takes long.
type callSlow struct {
	call *call
	// callee is "executor NAME" or "network plugin NAME".
	callee string
}

func (e callSlow) apply(t *task) {
	if t.call != e.call || e.call.observed || t.goal >= musterv1.TaskState_REMOVE {
		return
	}
	text := fmt.Sprintf("%s has not answered to %s within %s; it is given more time", e.callee, e.call.action, slowCall)
	t.m.log.Warn("plugin is slow", zap.String("task", t.id), zap.String("error", text))
	t.update(func(r *record) { r.status.Error = text })
}
