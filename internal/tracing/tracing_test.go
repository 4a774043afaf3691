package tracing_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/tracing"
)

// record returns a tracer, what it has recorded, and a context within a span.
func record(t *testing.T, sampler sdktrace.Sampler) (*tracing.Tracer, *tracetest.InMemoryExporter, context.Context) {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithSampler(sampler))
	t.Cleanup(func() {
		if err := provider.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx, span := provider.Tracer("test").Start(t.Context(), "call")
	span.End()
	return tracing.New(provider), exporter, ctx
}

func TestATraceIsHandedOn(t *testing.T) {
	t.Parallel()
	tracer, exporter, ctx := record(t, sdktrace.AlwaysSample())
	began := time.Now().Add(-time.Second)
	first := tracer.Begin(tracing.Of(ctx), "first", began, tracing.Service("s1"))
	second := tracer.Begin(first.Trace(), "second", began)
	second.End(errors.New("broken"))
	first.End(nil, tracing.Tasks(3))
	spans := exporter.GetSpans()
	if len(spans) != 3 {
		t.Fatalf("%d spans, want 3", len(spans))
	}
	call, b, a := spans[0], spans[1], spans[2]
	if a.Parent.SpanID() != call.SpanContext.SpanID() || b.Parent.SpanID() != a.SpanContext.SpanID() || b.SpanContext.TraceID() != call.SpanContext.TraceID() {
		t.Errorf("spans are not joined: %v", spans)
	}
	if !a.StartTime.Equal(began) || b.Status.Code != codes.Error || a.Status.Code != codes.Unset || len(a.Attributes) != 2 {
		t.Errorf("spans say %+v and %+v", a, b)
	}
}

func TestNothingIsTracedUnasked(t *testing.T) {
	t.Parallel()
	if got := tracing.Of(t.Context()); got != nil {
		t.Errorf("a context without a span leads to %x", got)
	}
	_, _, dropped := record(t, sdktrace.NeverSample())
	if got := tracing.Of(dropped); got != nil {
		t.Errorf("a span that is not sampled leads to %x", got)
	}
	tracer, exporter, ctx := record(t, sdktrace.AlwaysSample())
	exporter.Reset()
	for name, trace := range map[string][]byte{"none": nil, "short": {1, 2, 3}, "zero": make([]byte, 24), "long": make([]byte, 25)} {
		s := tracer.Begin(trace, name, time.Now())
		s.End(nil)
	}
	if n := len(exporter.GetSpans()); n != 0 {
		t.Errorf("%d spans belong to no trace", n)
	}
	var off *tracing.Tracer
	given := tracing.Of(ctx)
	s := off.Begin(given, "off", time.Now())
	s.End(nil)
	if string(s.Trace()) != string(given) {
		t.Error("a daemon without tracing does not hand the trace on")
	}
	if off.ServerOptions() != nil || off.DialOptions() != nil {
		t.Error("a tracer that is off has options")
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		flag string
		env  map[string]string
		want string
		ok   bool
	}{
		"off":          {"", nil, "", true},
		"flag":         {"http://a:4317", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4317"}, "http://a:4317", true},
		"variable":     {"", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://b:4317"}, "https://b:4317", true},
		"for traces":   {"", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1"}, "http://c:1", true},
		"switched off": {"http://a:4317", map[string]string{"OTEL_SDK_DISABLED": "true"}, "", true},
		"no scheme":    {"a:4317", nil, "a:4317", false},
		"no host":      {"http://", nil, "http://", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tracing.Settings{Endpoint: test.flag}.Resolve(func(name string) (string, bool) { v, ok := test.env[name]; return v, ok })
			if err := s.Validate(); s.Endpoint != test.want || (err == nil) != test.ok {
				t.Errorf("endpoint %q, %v", s.Endpoint, err)
			}
		})
	}
}

// TestACollectorThatIsAway sends traces to an address without a listener: only the
// traces are lost.
func TestACollectorThatIsAway(t *testing.T) {
	t.Parallel()
	tracer, flush, err := tracing.Export(t.Context(), tracing.Settings{Endpoint: "http://127.0.0.1:1"}, tracing.Process{Daemon: "testd"}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	_, _, ctx := record(t, sdktrace.AlwaysSample())
	tracer.Begin(tracing.Of(ctx), "lost", time.Now()).End(nil)
	stop, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := flush(stop); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("flush took %v, want at most the time that it was given", took)
	}
}
