package orchestratord

import (
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func TestTrace(t *testing.T) {
	t.Parallel()
	exporter := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	call, span := provider.Tracer("test").Start(t.Context(), "call")
	span.End()
	l := &loop{d: &Daemon{tracer: tracing.New(provider)}}
	s := &service{id: "s1"}
	web := &recordv1.Service{UpdatedAt: 1000, Trace: tracing.Of(call)}

	// made has a plan of so many tasks traced, and says how many carry it on.
	made := func(l *loop, service *recordv1.Service, n int, task *recordv1.Task, reason plan.Reason) (carry int) {
		t.Helper()
		var p plan.Plan
		for range n {
			p.Slots = append(p.Slots, plan.Slot{Changes: []plan.Change{{Reason: reason, Record: proto.CloneOf(task)}}})
		}
		l.trace(s, service, p, time.Now()).End(nil)
		for _, slot := range p.Slots {
			if len(slot.Changes[0].Record.Trace) > 0 {
				carry++
			}
		}
		return carry
	}
	asked := &recordv1.Task{AskedAt: 1000, DesiredState: musterv1.TaskState_RUNNING, Reason: string(plan.ReasonSlotEmpty)}
	steps := []struct {
		name    string
		service *recordv1.Service
		n       int
		task    *recordv1.Task
		reason  plan.Reason
		want    int
	}{
		{"of a call that is not traced", &recordv1.Service{UpdatedAt: 1000}, 5, asked, plan.ReasonSlotEmpty, 0},
		{"a few", web, 4, asked, plan.ReasonSlotEmpty, 4},
		{"many", web, 1000, asked, plan.ReasonSlotEmpty, 6},
		{"one that failed is replaced", web, 1, &recordv1.Task{DesiredState: musterv1.TaskState_RUNNING, Reason: string(plan.ReasonFailed)}, plan.ReasonFailed, 0},
		{"one that waited may start", web, 1, asked, plan.ReasonMayStart, 0},
		{"the next call", &recordv1.Service{UpdatedAt: 2000, Trace: web.Trace}, 20, &recordv1.Task{
			AskedAt: 2000, DesiredState: musterv1.TaskState_READY, Reason: string(plan.ReasonSpecChanged),
		}, plan.ReasonSpecChanged, 10},
		{"what it ends", &recordv1.Service{UpdatedAt: 2000, Trace: web.Trace}, 1, &recordv1.Task{
			AskedAt: 2000, DesiredState: musterv1.TaskState_SHUTDOWN, Reason: string(plan.ReasonFailed),
		}, plan.ReasonFailed, 0},
	}
	for _, step := range steps {
		if got := made(l, step.service, step.n, step.task, step.reason); got != step.want {
			t.Errorf("%s: %d tasks carry the trace on, want %d", step.name, got, step.want)
		}
	}
	if n := len(exporter.GetSpans()) - 1; n != 3 {
		t.Errorf("%d plans were traced, want 3", n)
	}
	s.traced = traced{}
	if got := made(&loop{d: &Daemon{}}, web, 20, asked, plan.ReasonSlotEmpty); got != tracedTasks {
		t.Errorf("where tracing is off, %d tasks carry the trace on, want %d", got, tracedTasks)
	}
}
