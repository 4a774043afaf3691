package dispatcherd

import (
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tracing"
)

// traceSent tells of traced tasks that a worker was told of.
func (s *session) traceSent(traced []*dispatcherv1.AssignedTask, began time.Time) {
	for _, t := range traced {
		s.d.tracer.Begin(t.Trace, "send task", began, tracing.Task(t.Id), tracing.Node(s.node)).End(nil)
	}
}

// traceReport begins the span of the report that a traced task runs or has ended,
// which ends when the report is written. The caller holds book.
func (s *session) traceReport(id string, state musterv1.TaskState, now time.Time) (tracing.Span, bool) {
	if state < musterv1.TaskState_RUNNING {
		return tracing.Span{}, false
	}
	trace := s.sent.TakeTrace(id)
	if trace == nil {
		return tracing.Span{}, false
	}
	return s.d.tracer.Begin(trace, "record status", now, tracing.Task(id), tracing.Node(s.node), tracing.State(state.String())), true
}
