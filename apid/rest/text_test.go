package rest_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/rest"
)

// evil clears a terminal's screen, changes its colours in 7 and in 8 bits, and begins
// what looks like another line.
const evil = "a\x1b[2J\u009b31m\x7f\r\nwarning: b\u2028c"

// mischief shows text that tasks and workers wrote.
type mischief struct {
	musterv1.UnimplementedControlServiceServer
}

func (mischief) messages() []*musterv1.LogMessage {
	return []*musterv1.LogMessage{
		{TaskId: "0k2fgm4tq8xwyz", NodeId: "n1", NodeName: "al\x1bpha", Source: "web.1", Data: []byte(evil)},
		{NodeId: "n1", Warning: evil},
	}
}

func (m mischief) ServiceLogs(_ *musterv1.ServiceLogsRequest, s grpc.ServerStreamingServer[musterv1.ServiceLogsResponse]) error {
	for _, line := range m.messages() {
		if err := s.Send(&musterv1.ServiceLogsResponse{Message: line}); err != nil {
			return err
		}
	}
	return status.Error(codes.Internal, evil)
}

func (m mischief) TaskLogs(_ *musterv1.TaskLogsRequest, s grpc.ServerStreamingServer[musterv1.TaskLogsResponse]) error {
	for _, line := range m.messages() {
		if err := s.Send(&musterv1.TaskLogsResponse{Message: line}); err != nil {
			return err
		}
	}
	return status.Error(codes.Internal, evil)
}

func (mischief) GetTask(context.Context, *musterv1.GetTaskRequest) (*musterv1.GetTaskResponse, error) {
	return &musterv1.GetTaskResponse{Task: &musterv1.Task{Status: &musterv1.TaskStatus{Error: evil}}}, nil
}

func (mischief) GetNode(context.Context, *musterv1.GetNodeRequest) (*musterv1.GetNodeResponse, error) {
	return nil, status.Error(codes.NotFound, evil)
}

func (mischief) Watch(_ *musterv1.WatchRequest, s grpc.ServerStreamingServer[musterv1.WatchResponse]) error {
	return s.Send(&musterv1.WatchResponse{Events: []*musterv1.WatchEvent{{
		Object: &musterv1.WatchEvent_Node{Node: &musterv1.Node{Description: &musterv1.NodeDescription{Hostname: evil}}},
	}}})
}

// TestNoTerminalActsOnAnAnswer shows hostile text in every form that REST has. Only
// what a program asks for as raw has control characters.
func TestNoTerminalActsOnAnAnswer(t *testing.T) {
	handler, err := rest.New(mischief{}, func(context.Context) error { return nil }, nil, nil, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	const (
		text     = "web.1.0k2fgm4tq8xw@alpha | a[2J31m warning: b c\nwarning: a[2J31m warning: b c\nerror: a[2J31m warning: b c\n"
		raw      = evil + "\nwarning: a[2J31m warning: b c\nerror: a[2J31m warning: b c\n"
		asObject = `"a\u001b[2J\u009b31m\u007f\r\nwarning: b\u2028c"`
	)
	for name, tt := range map[string]struct{ path, accept, want, holds string }{
		"text":               {path: "/v1/services/web/logs", accept: "text/plain", want: text},
		"text of a task":     {path: "/v1/tasks/t/logs", accept: "text/plain", want: text},
		"raw":                {path: "/v1/services/web/logs?raw=true", accept: "text/plain", want: raw},
		"raw, of a task":     {path: "/v1/tasks/t/logs?raw=true", accept: "text/plain", want: raw},
		"not raw":            {path: "/v1/tasks/t/logs?raw=false", accept: "text/plain", want: text},
		"logs as JSON":       {path: "/v1/services/web/logs?raw=true", accept: "*/*", holds: asObject},
		"a task":             {path: "/v1/tasks/t", accept: "*/*", holds: asObject},
		"an error":           {path: "/v1/nodes/n", accept: "*/*", holds: asObject},
		"a watch":            {path: "/v1/watch", accept: "*/*", holds: asObject},
		"a watch, as events": {path: "/v1/watch", accept: "text/event-stream", holds: asObject},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, tt.path, nil)
			r.Header.Set("Accept", tt.accept)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			got := w.Body.String()
			if tt.want != "" && got != tt.want {
				t.Errorf("answer is\n%q, want\n%q", got, tt.want)
			}
			if !strings.Contains(got, tt.holds) {
				t.Errorf("answer is\n%q, want it to hold\n%q", got, tt.holds)
			}
			if tt.want != raw && strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && unicode.IsControl(r) || r == '\u2028' }) {
				t.Errorf("answer has control characters: %q", got)
			}
			for line := range strings.Lines(got) {
				if tt.want == "" && strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
					t.Errorf("%q is not JSON", line)
				}
			}
		})
	}
}
