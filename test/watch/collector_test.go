package watch_test

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"

	coltracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// span is a span as the collector got it.
type span struct {
	*tracev1.Span
	// daemon is the service.name of who made it.
	daemon string
	// about holds the span's own attributes that are texts.
	about map[string]string
}

// collector takes traces, as Jaeger or an OpenTelemetry collector does.
type collector struct {
	coltracev1.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []span
}

// startCollector starts a collector that ends with the test.
func startCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	c := &collector{address: l.Addr().String()}
	server := grpc.NewServer()
	coltracev1.RegisterTraceServiceServer(server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return c
}

// Export implements the service.
func (c *collector) Export(_ context.Context, req *coltracev1.ExportTraceServiceRequest) (*coltracev1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		daemon := ""
		for _, a := range r.GetResource().GetAttributes() {
			if a.Key == "service.name" {
				daemon = a.Value.GetStringValue()
			}
		}
		for _, scope := range r.ScopeSpans {
			for _, s := range scope.Spans {
				about := map[string]string{}
				for _, a := range s.Attributes {
					about[a.Key] = a.Value.GetStringValue()
				}
				c.spans = append(c.spans, span{s, daemon, about})
			}
		}
	}
	return &coltracev1.ExportTraceServiceResponse{}, nil
}

// trace returns the spans of a trace, by their ids.
func (c *collector) trace(id string) map[string]span {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string]span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == id {
			found[hex.EncodeToString(s.SpanId)] = s
		}
	}
	return found
}
