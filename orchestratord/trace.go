package orchestratord

import (
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// Bounds on what is traced of one call, whatever it asks for: people
// must be able to read a trace, and 10,000 tasks must not cost 50,000 spans.
const (
	tracedTasks = 10
	tracedPlans = 100
)

// traced counts what was traced of a service's last change.
type traced struct {
	// since is when the change was made, which tells it from others.
	since        int64
	tasks, plans int
}

// trace begins the span of a plan, if that is an answer to a call that is traced,
// and has some of the tasks that are made carry the trace on.
func (l *loop) trace(s *service, record *recordv1.Service, p plan.Plan, began time.Time) tracing.Span {
	if len(record.GetTrace()) == 0 {
		return tracing.Span{}
	}
	if s.traced.since != record.UpdatedAt {
		s.traced = traced{since: record.UpdatedAt}
	}
	var made []*recordv1.Task
	stopped := 0
	for _, slot := range p.Slots {
		for _, c := range slot.Changes {
			switch {
			case c.Reason == plan.ReasonScaledDown:
				stopped++
			case c.Record.GetAskedAt() == record.UpdatedAt && c.Record.DesiredState <= musterv1.TaskState_RUNNING && c.Record.Reason == string(c.Reason):
				// A task that is only released has got another reason for that.
				made = append(made, c.Record)
			}
		}
	}
	if len(made)+stopped == 0 || s.traced.plans >= tracedPlans {
		return tracing.Span{}
	}
	s.traced.plans++
	name, tasks := "create tasks", len(made)
	if tasks == 0 {
		name, tasks = "stop tasks", stopped
	}
	span := l.d.tracer.Begin(record.Trace, name, began, tracing.Service(s.id), tracing.Tasks(tasks))
	for _, t := range made[:min(len(made), tracedTasks-s.traced.tasks)] {
		t.Trace = span.Trace()
		s.traced.tasks++
	}
	return span
}
