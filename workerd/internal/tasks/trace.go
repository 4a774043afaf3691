package tasks

import (
	"errors"
	"time"

	"github.com/musterhq/muster/internal/tracing"
)

// trace begins a span for something that is done about a traced task.
func (t *task) trace(name string, at time.Time) tracing.Span {
	trace := t.assigned.GetTrace()
	if len(trace) == 0 {
		return tracing.Span{}
	}
	return t.m.cfg.Tracer.Begin(trace, name, at, tracing.Task(t.id), tracing.Node(t.m.cfg.NodeID))
}

// traceCall begins the span of a call that brings a task closer to its start.
func (t *task) traceCall(what action, at time.Time) tracing.Span {
	switch what {
	case actPrepare:
		return t.trace("prepare task", at)
	case actAttach:
		return t.trace("attach task", at)
	case actStart:
		return t.trace("start task", at)
	default:
		return tracing.Span{}
	}
}

// traceError returns a task's error for a span, or nil if there is none.
func traceError(message string) error {
	if message == "" {
		return nil
	}
	return errors.New(message)
}
