package tracing

import (
	"context"
	"fmt"
	"net/url"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
)

// Settings say where spans go. What else can be set about the exporter and the
// sampler is set by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_HEADERS,
// OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES
// and so on.
type Settings struct {
	// Endpoint is the URL of a collector that takes OTLP over gRPC. Empty: the
	// variables say, and if they do not, tracing is off.
	Endpoint string
}

// Resolve reads from the environment whether tracing is on, if the settings do not
// say.
func (s Settings) Resolve(environ func(string) (string, bool)) Settings {
	if off, _ := environ("OTEL_SDK_DISABLED"); off == "true" {
		return Settings{}
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		if value, _ := environ(name); s.Endpoint == "" {
			s.Endpoint = value
		}
	}
	return s
}

// Validate checks the settings.
func (s Settings) Validate() error {
	if s.Endpoint == "" {
		return nil
	}
	if u, err := url.Parse(s.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q (or the value of OTEL_EXPORTER_OTLP_ENDPOINT) is not a URL like http://collector:4317", s.Endpoint)
	}
	return nil
}

// Process says who makes spans.
type Process struct{ Daemon, Instance, Version string }

// Export returns a tracer whose spans go to a collector, and what flushes them
// and ends that, within a context's time. Without an endpoint the tracer is nil.
// It connects when there is something to send, and a collector that is away
// costs only the spans.
func Export(ctx context.Context, s Settings, p Process, log *zap.Logger) (*Tracer, func(context.Context) error, error) {
	if s.Endpoint == "" {
		return nil, func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(s.Endpoint))
	if err != nil {
		return nil, nil, fmt.Errorf("export traces to %s: %w", s.Endpoint, err)
	}
	// What comes later wins: a name that is set for the process is not to hide
	// which of the daemons in it made a span.
	who, err := resource.New(ctx, resource.WithHost(), resource.WithFromEnv(),
		resource.WithAttributes(
			attribute.String("service.namespace", "muster"), attribute.String("service.name", p.Daemon),
			attribute.String("service.instance.id", p.Instance), attribute.String("service.version", p.Version),
		),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("name the process to the collector: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&teller{SpanExporter: exporter, log: log}), sdktrace.WithResource(who),
	)
	return New(provider), provider.Shutdown, nil
}

// teller logs when spans cannot be sent, and when they can again: once each, and
// not for every batch.
type teller struct {
	sdktrace.SpanExporter
	log  *zap.Logger
	away atomic.Bool
}

// ExportSpans implements [sdktrace.SpanExporter].
func (t *teller) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := t.SpanExporter.ExportSpans(ctx, spans)
	switch was := t.away.Swap(err != nil); {
	case err != nil && !was:
		t.log.Warn("traces cannot be sent and are dropped", zap.Error(err))
	case err == nil && was:
		t.log.Info("traces are sent again")
	}
	// It is logged; there is nowhere else to report it.
	return nil
}
