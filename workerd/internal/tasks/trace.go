package tasks

import (
	"errors"
	"time"

	"github.com/musterhq/muster/internal/tracing"
)

// trace begins the span of something that is done about a traced task.
func (t *task) trace(name string, at time.Time) tracing.Span {
	trace := t.assigned.GetTrace()
	if len(trace) == 0 {
		return tracing.Span{}
	}
	return t.m.cfg.Tracer.Begin(trace, name, at, tracing.Task(t.id), tracing.Node(t.m.cfg.NodeID))
}

// traceCall begins the span of a call that brings a task towards its start.
func (t *task) traceCall(what action, at time.Time) tracing.Span {
	switch what {
	case actPrepare:
		return t.trace("prepare task", at)
	case actStart:
		return t.trace("start task", at)
	default:
		return tracing.Span{}
	}
}

// traceError is what a span says of a task's error, if it has one.
func traceError(message string) error {
	if message == "" {
		return nil
	}
	return errors.New(message)
}
