// Package tracing joins what the daemons do for one call of the API into one
// trace of OpenTelemetry. It owns how a trace is handed on and how spans get to a
// collector; what is worth a span is the daemons' own business.
//
// Daemons do not call each other, they meet in records. So the span of the call
// is kept with the service that it changed, and a few of the tasks that the
// orchestrator makes in answer carry the orchestrator's span from daemon to
// daemon. Where nothing is traced, records hold nothing of it.
//
// A nil [Tracer] is one that is off: it makes no spans, and hands on what it is
// given.
package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Tracer makes a daemon's spans.
type Tracer struct {
	provider trace.TracerProvider
	tracer   trace.Tracer
}

// New returns a tracer whose spans a provider takes.
func New(p trace.TracerProvider) *Tracer {
	return &Tracer{provider: p, tracer: p.Tracer("github.com/musterhq/muster")}
}

// Span is a piece of work that is part of a trace, or none.
type Span struct {
	span   trace.Span // nil if there is none
	parent []byte
}

// Begin begins a span at a moment, in the trace that a record is part of. Without
// one there is no span: nothing begins a trace but a user's call.
func (t *Tracer) Begin(parent []byte, name string, at time.Time, attributes ...attribute.KeyValue) Span {
	s := Span{parent: parent}
	if t == nil {
		return s
	}
	sc, ok := decode(parent)
	if !ok {
		return s
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), sc)
	_, s.span = t.tracer.Start(ctx, name, trace.WithTimestamp(at), trace.WithAttributes(attributes...))
	return s
}

// Trace is what a record holds that the span leads to, so that others continue
// from here.
func (s Span) Trace() []byte {
	if s.span == nil {
		return s.parent
	}
	return encode(s.span.SpanContext())
}

// End ends the span, if there is one, with the error that its work ended with.
func (s Span) End(err error, attributes ...attribute.KeyValue) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(attributes...)
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}

// Of returns what a record holds that a call leads to; nil if it is not traced.
func Of(ctx context.Context) []byte {
	return encode(trace.SpanContextFromContext(ctx))
}

// idLength is the length of an encoded span context: trace id and span id.
const idLength = 16 + 8

// encode returns nil for a span that is not recorded: what follows is not recorded
// either.
func encode(sc trace.SpanContext) []byte {
	if !sc.IsValid() || !sc.IsSampled() {
		return nil
	}
	traceID, spanID := sc.TraceID(), sc.SpanID()
	return append(append(make([]byte, 0, idLength), traceID[:]...), spanID[:]...)
}

// decode takes what encode made. It comes from records, which anybody may have
// written.
func decode(b []byte) (trace.SpanContext, bool) {
	if len(b) != idLength {
		return trace.SpanContext{}, false
	}
	sc := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(b[:16]), SpanID: trace.SpanID(b[16:]), TraceFlags: trace.FlagsSampled, Remote: true,
	})
	return sc, sc.IsValid()
}

// Keys of attributes, alike in all daemons.
const (
	keyService = "muster.service.id"
	keyTask    = "muster.task.id"
	keyNode    = "muster.node.id"
	keyTasks   = "muster.tasks"
	keyState   = "muster.task.state"
)

// Service is the attribute that names a service.
func Service(id string) attribute.KeyValue { return attribute.String(keyService, id) }

// Task is the attribute that names a task.
func Task(id string) attribute.KeyValue { return attribute.String(keyTask, id) }

// Node is the attribute that names a node.
func Node(id string) attribute.KeyValue { return attribute.String(keyNode, id) }

// Tasks is the attribute that says of how many tasks a span tells.
func Tasks(n int) attribute.KeyValue { return attribute.Int(keyTasks, n) }

// State is the attribute that names a task's state.
func State(name string) attribute.KeyValue { return attribute.String(keyState, name) }
