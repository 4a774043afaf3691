package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/server"
)

// stampFormat is that of a line's time: all have the same length.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// logRequest is what a client asks of logs.
type logRequest struct {
	options    *musterv1.LogOptions
	timestamps bool
	details    bool
	// none: a tail of no lines, which Muster's options cannot say.
	none bool
}

func readLogRequest(r *http.Request) (*logRequest, error) {
	q := r.URL.Query()
	out := &logRequest{timestamps: server.Bool(r, "timestamps"), details: server.Bool(r, "details"), options: &musterv1.LogOptions{Follow: server.Bool(r, "follow")}}
	if server.Bool(r, "stdout") {
		out.options.Streams = append(out.options.Streams, musterv1.LogStream_STDOUT)
	}
	if server.Bool(r, "stderr") {
		out.options.Streams = append(out.options.Streams, musterv1.LogStream_STDERR)
	}
	if len(out.options.Streams) == 0 {
		return nil, server.Errorf(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	if tail := q.Get("tail"); tail != "" && tail != "all" {
		// As in Docker, what is no number means all.
		if n, err := strconv.ParseUint(tail, 10, 31); err == nil {
			out.options.Tail, out.none = uint32(n), n == 0
		}
	}
	if since := q.Get("since"); since != "" && since != "0" {
		t, err := instant(since, time.Now())
		if err != nil {
			return nil, server.Errorf(http.StatusBadRequest, "invalid value for \"since\": %v", err)
		}
		out.options.Since = timestamppb.New(t)
	}
	if out.none {
		// Only lines that are yet to be written.
		out.options.Since = timestamppb.Now()
	}
	return out, nil
}

// instant reads a time as clients send it: seconds with a fraction, RFC 3339, or a duration
// before now.
func instant(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("invalid time %q: want seconds since 1970, RFC 3339, or a duration", text)
	}
	if fraction == "" {
		return time.Unix(seconds, 0), nil
	}
	fraction = (fraction + "000000000")[:9]
	nanos, err := strconv.ParseInt(fraction, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("invalid time %q: want seconds since 1970, RFC 3339, or a duration", text)
	}
	return time.Unix(seconds, nanos), nil
}

func (a *API) serviceLogs(w http.ResponseWriter, r *http.Request) error {
	r, cancel := a.streaming(r)
	defer cancel()
	req, err := readLogRequest(r)
	if err != nil {
		return err
	}
	s, err := a.service(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	stream, err := a.Client.ServiceLogs(r.Context(), &musterv1.ServiceLogsRequest{Service: s.GetId(), Options: req.options})
	if err != nil {
		return err
	}
	return a.writeLogs(w, r, req, s.GetSpec().GetTask().GetContainer().GetTty(), func() (*musterv1.LogMessage, error) {
		m, err := stream.Recv()
		return m.GetMessage(), err
	})
}

func (a *API) taskLogs(w http.ResponseWriter, r *http.Request) error {
	r, cancel := a.streaming(r)
	defer cancel()
	req, err := readLogRequest(r)
	if err != nil {
		return err
	}
	t, err := a.task(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	stream, err := a.Client.TaskLogs(r.Context(), &musterv1.TaskLogsRequest{Task: t.GetId(), Options: req.options})
	if err != nil {
		return err
	}
	return a.writeLogs(w, r, req, t.GetSpec().GetContainer().GetTty(), func() (*musterv1.LogMessage, error) {
		m, err := stream.Recv()
		return m.GetMessage(), err
	})
}

// writeLogs writes lines in Docker's framing until the last one. A terminal's lines
// have no frames.
func (a *API) writeLogs(w http.ResponseWriter, r *http.Request, req *logRequest, tty bool, next func() (*musterv1.LogMessage, error)) error {
	kind := types.MediaTypeRawStream
	if !tty && !server.Before(r.Context(), "1.42") {
		kind = types.MediaTypeMultiplexedStream
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	if err := control.Flush(); err != nil {
		return err
	}
	// A client stops reading at the first error, so missing logs are reported at the end.
	var warnings []string
	for {
		m, err := next()
		if err != nil {
			if !errors.Is(err, io.EOF) && r.Context().Err() == nil {
				warnings = append(warnings, status.Convert(err).Message())
			}
			if len(warnings) > 0 && !tty {
				_, _ = w.Write(frame(stdcopy.Systemerr, []byte("warning: incomplete log stream. some logs could not be retrieved for the following reasons: "+strings.Join(warnings, ", ")+"\n")))
			}
			return nil
		}
		if m.GetWarning() != "" {
			warnings = append(warnings, m.GetWarning())
			continue
		}
		if req.none && !req.options.Follow {
			continue
		}
		stream, line := stdcopy.Stdout, req.line(m)
		if m.GetStream() == musterv1.LogStream_STDERR {
			stream = stdcopy.Stderr
		}
		if !tty {
			line = frame(stream, line)
		}
		if _, err := w.Write(line); err != nil {
			return nil
		}
		if err := control.Flush(); err != nil {
			return nil
		}
	}
}

// line returns a line as clients read it: its time, its details, its text.
func (q *logRequest) line(m *musterv1.LogMessage) []byte {
	var out []byte
	if q.timestamps {
		out = m.GetTimestamp().AsTime().AppendFormat(out, stampFormat)
		out = append(out, ' ')
	}
	if q.details {
		// In order of their names.
		for i, d := range [][2]string{
			{"com.docker.swarm.node.id", m.GetNodeId()}, {"com.docker.swarm.service.id", m.GetServiceId()}, {"com.docker.swarm.task.id", m.GetTaskId()},
		} {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(out, url.QueryEscape(d[0])+"="+url.QueryEscape(d[1])...)
		}
		out = append(out, ' ')
	}
	return append(append(out, m.GetData()...), '\n')
}

// frame puts the header before a line that tells which stream it is of.
func frame(stream stdcopy.StdType, line []byte) []byte {
	header := make([]byte, 8, 8+len(line))
	header[0] = byte(stream)
	binary.BigEndian.PutUint32(header[4:], uint32(len(line)))
	return append(header, line...)
}
