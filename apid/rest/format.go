package rest

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
	"github.com/musterhq/muster/internal/terminal"
)

// format is how a stream of messages is written.
type format interface {
	contentType() string
	message(proto.Message) ([]byte, error)
	failure(*status.Status) ([]byte, error)
	// alive is written now and then to a quiet stream; nil if there is nothing
	// that a reader would ignore.
	alive() []byte
}

// jsonFormat writes one JSON object a line: {"result": ...} for a message, and
// {"error": ...} as the last line if the stream ends with an error.
type jsonFormat struct{}

func (jsonFormat) contentType() string { return "application/x-ndjson" }
func (jsonFormat) alive() []byte       { return nil }

func (jsonFormat) message(m proto.Message) ([]byte, error) { return wrap("result", m) }

func (jsonFormat) failure(s *status.Status) ([]byte, error) { return wrap("error", s.Proto()) }

func wrap(name string, m proto.Message) ([]byte, error) {
	b, err := compact(m)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{%q:%s}\n", name, b), nil
}

// compact writes a message on one line.
func compact(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return terminal.JSON(b), nil
}

// eventFormat writes server-sent events. The id of an event is its resume
// token, which a browser sends back when it connects again.
type eventFormat struct{}

func (eventFormat) contentType() string { return "text/event-stream" }
func (eventFormat) alive() []byte       { return []byte(": alive\n\n") }

func (eventFormat) message(m proto.Message) ([]byte, error) {
	b, err := compact(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if w, ok := m.(*musterv1.WatchResponse); ok {
		fmt.Fprintf(&out, "id: %s\n", w.ResumeToken)
	}
	fmt.Fprintf(&out, "data: %s\n\n", b)
	return out.Bytes(), nil
}

func (eventFormat) failure(s *status.Status) ([]byte, error) {
	b, err := compact(s.Proto())
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "event: error\ndata: %s\n\n", b), nil
}

// textFormat writes log lines for people, on whose terminals they may land.
type textFormat struct{ raw bool }

func (*textFormat) contentType() string { return "text/plain; charset=utf-8" }
func (*textFormat) alive() []byte       { return nil }

func (f *textFormat) message(m proto.Message) ([]byte, error) {
	var line *musterv1.LogMessage
	switch m := m.(type) {
	case *musterv1.ServiceLogsResponse:
		line = m.Message
	case *musterv1.TaskLogsResponse:
		line = m.Message
	}
	switch {
	case line.GetWarning() != "":
		return []byte(tasklog.Warning(line) + "\n"), nil
	case f.raw:
		return append(bytes.Clone(line.GetData()), '\n'), nil
	}
	return []byte(tasklog.Text(line) + "\n"), nil
}

func (*textFormat) failure(s *status.Status) ([]byte, error) {
	return fmt.Appendf(nil, "error: %s\n", terminal.Line(s.Message())), nil
}
