package watch_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// web is a service whose endpoint has to be allocated.
func web(name string, replicas uint64) *musterv1.ServiceSpec {
	spec := rig.Null(name, replicas)
	spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}}
	return spec
}

// tracedTasks is how many tasks of one call are traced at most.
const tracedTasks = 10

// steps are what each daemon tells of a call that creates tasks, once each or once
// for each task that is traced.
var steps = map[string]map[string]bool{ // by daemon, name; whether for each task
	"allocatord":    {"allocate endpoint": false},
	"orchestratord": {"create tasks": false},
	"schedulerd":    {"assign task": true},
	"dispatcherd":   {"send task": true, "record status": true},
	"workerd":       {"accept task": true, "prepare task": true, "start task": true},
}

// joined returns an error unless a trace holds all steps for so many tasks, each
// span's parent is one of its spans or the client's, and it leads up to RUNNING.
func joined(spans map[string]span, client, call string, tasks int) error {
	got := map[string]map[string]map[string]bool{} // tasks by daemon and name
	for id, s := range spans {
		if parent := hex.EncodeToString(s.ParentSpanId); parent != client {
			if _, ok := spans[parent]; !ok {
				return fmt.Errorf("parent %s of %s %q (%s) is no span of the trace", parent, s.daemon, s.Name, id)
			}
		} else if s.daemon != "apid" || !strings.Contains(s.Name, call) {
			return fmt.Errorf("%s %q answers to the client", s.daemon, s.Name)
		}
		if s.EndTimeUnixNano < s.StartTimeUnixNano {
			return fmt.Errorf("%s %q ends before it begins", s.daemon, s.Name)
		}
		if s.daemon == "apid" {
			continue
		}
		if _, ok := steps[s.daemon][s.Name]; !ok {
			return fmt.Errorf("%s tells of %q", s.daemon, s.Name)
		}
		if got[s.daemon] == nil {
			got[s.daemon] = map[string]map[string]bool{}
		}
		if got[s.daemon][s.Name] == nil {
			got[s.daemon][s.Name] = map[string]bool{}
		}
		if of := got[s.daemon][s.Name]; of[s.about["muster.task.id"]] {
			return fmt.Errorf("%s tells twice of %q of task %s", s.daemon, s.Name, s.about["muster.task.id"])
		} else {
			of[s.about["muster.task.id"]] = true
		}
		if s.Name == "record status" && s.about["muster.task.state"] != "RUNNING" {
			return fmt.Errorf("the status that is recorded is %s", s.about["muster.task.state"])
		}
	}
	for daemon, names := range steps {
		for name, each := range names {
			want := 1
			if each {
				want = tasks
			}
			if n := len(got[daemon][name]); n != want {
				return fmt.Errorf("%s tells of %q %d times, want %d; spans: %d", daemon, name, n, want, len(spans))
			}
		}
	}
	return nil
}

// TestTrace creates services by calls that are part of a trace, over gRPC and
// REST, and looks whether a collector gets one trace from the call to RUNNING
// through every daemon.
func TestTrace(t *testing.T) {
	c := startCollector(t)
	w := start(t, "--otlp-endpoint", "http://"+c.address)

	const clientSpan = "00f067aa0ba902b7"
	tests := []struct {
		name, trace, call string
		replicas          uint64
		create            func(t *testing.T, traceparent string, spec *musterv1.ServiceSpec)
	}{
		{"gRPC", "4bf92f3577b34da6a3ce929d0e0e4736", "CreateService", 3, func(t *testing.T, traceparent string, spec *musterv1.ServiceSpec) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
			_, err := w.Client("apid").CreateService(ctx, &musterv1.CreateServiceRequest{Spec: spec})
			ok(t, err)
		}},
		{"REST, more tasks than are traced", "4bf92f3577b34da6a3ce929d0e0e4737", "REST POST", 3 * tracedTasks, func(t *testing.T, traceparent string, spec *musterv1.ServiceSpec) {
			body, err := protojson.Marshal(spec)
			ok(t, err)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.REST+"/v1/services", strings.NewReader(string(body)))
			ok(t, err)
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("traceparent", traceparent)
			resp, err := http.DefaultClient.Do(req)
			ok(t, err)
			ok(t, resp.Body.Close())
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("create: %s", resp.Status)
			}
		}},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := web(fmt.Sprintf("web%d", i), test.replicas)
			test.create(t, "00-"+test.trace+"-"+clientSpan+"-01", spec)
			wait.Within(t, waitTimeout, "the trace is joined", func(context.Context) error {
				return joined(c.trace(test.trace), clientSpan, test.call, int(min(test.replicas, tracedTasks)))
			})
		})
	}
	t.Run("not sampled", func(t *testing.T) {
		const trace = "4bf92f3577b34da6a3ce929d0e0e4738"
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+clientSpan+"-00")
		_, err := w.Client("apid").ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: "web0", Replicas: 5})
		ok(t, err)
		wait.Within(t, waitTimeout, "more tasks run", func(ctx context.Context) error {
			_, err := w.Running(ctx, "web0", 5)
			return err
		})
		// Who ends in order sends what it has.
		for _, p := range w.Processes() {
			ok(t, p.Stop())
		}
		if n := len(c.trace(trace)); n != 0 {
			t.Errorf("%d spans of a trace that is not to be sampled", n)
		}
	})
}
