package rest

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
)

const (
	// sendTimeout is how long a client may take to accept one message.
	sendTimeout = 30 * time.Second
	// keepAlive is how often a quiet stream of events shows that it lives.
	keepAlive = 15 * time.Second
)

// streams serves the calls that answer with more than one message.
type streams struct {
	server musterv1.ControlServiceServer
	log    *zap.Logger
}

func (s *streams) watch(w http.ResponseWriter, r *http.Request, params map[string]string) {
	req := &musterv1.WatchRequest{}
	format := wants(r, jsonFormat{}, eventFormat{})
	serve(s, w, r, params, req, format, func(out *stream[musterv1.WatchResponse]) error {
		// A browser that connects again says where it stopped.
		if last := r.Header.Get("Last-Event-ID"); last != "" && req.ResumeToken == "" {
			req.ResumeToken = last
		}
		return s.server.Watch(req, out)
	})
}

func (s *streams) serviceLogs(w http.ResponseWriter, r *http.Request, params map[string]string) {
	req := &musterv1.ServiceLogsRequest{Service: params["service"]}
	text := &textFormat{}
	serve(s, w, r, params, req, wants(r, jsonFormat{}, text), func(out *stream[musterv1.ServiceLogsResponse]) error {
		text.raw = req.Raw
		return s.server.ServiceLogs(req, out)
	})
}

func (s *streams) taskLogs(w http.ResponseWriter, r *http.Request, params map[string]string) {
	req := &musterv1.TaskLogsRequest{Task: params["task"]}
	text := &textFormat{}
	serve(s, w, r, params, req, wants(r, jsonFormat{}, text), func(out *stream[musterv1.TaskLogsResponse]) error {
		text.raw = req.Raw
		return s.server.TaskLogs(req, out)
	})
}

// serve runs one streaming call.
func serve[T any](s *streams, w http.ResponseWriter, r *http.Request, params map[string]string, req proto.Message, f format, call func(*stream[T]) error) {
	// What the path sets, the query must not.
	path := make([][]string, 0, len(params))
	for name := range params {
		path = append(path, []string{name})
	}
	if err := runtime.PopulateQueryParameters(req, r.URL.Query(), utilities.NewDoubleArray(path)); err != nil {
		writeError(r.Context(), nil, nil, w, r, status.Errorf(codes.InvalidArgument, "query: %v", err))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// What the call says of its answer as a whole becomes a header.
	ctx = grpc.NewContextWithServerTransportStream(ctx, headers{w})
	out := &stream[T]{ctx: ctx, w: w, control: http.NewResponseController(w), format: f}
	stop := out.beat()
	err := call(out)
	stop()
	out.end(s.log, r, err)
}

// headers takes those of a gRPC answer that REST passes on. They are set before
// the stream begins.
type headers struct{ w http.ResponseWriter }

func (h headers) SetHeader(md metadata.MD) error {
	if v := md.Get(musterv1.StaleHeader); len(v) > 0 {
		h.w.Header().Set(musterv1.StaleHeader, v[0])
	}
	return nil
}

func (h headers) SendHeader(md metadata.MD) error { return h.SetHeader(md) }
func (headers) SetTrailer(metadata.MD) error      { return nil }
func (headers) Method() string                    { return "" }

// stream is the server's side of a streaming call, over HTTP.
type stream[T any] struct {
	ctx     context.Context
	w       http.ResponseWriter
	control *http.ResponseController
	format  format

	mu      sync.Mutex
	started bool
}

func (s *stream[T]) Context() context.Context { return s.ctx }

// SendHeader begins the answer: from here on an error is part of the stream.
func (s *stream[T]) SendHeader(metadata.MD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush(nil)
}

func (s *stream[T]) Send(m *T) error {
	message, _ := any(m).(proto.Message)
	b, err := s.format.message(message)
	if err != nil {
		return status.Errorf(codes.Internal, "encode message: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush(b)
}

// flush writes and sees to it that the bytes leave. The caller holds the lock.
func (s *stream[T]) flush(b []byte) error {
	// Without deadlines of its own a connection keeps the server's, which is
	// none: a client that takes nothing would hold the call forever.
	_ = s.control.SetWriteDeadline(time.Now().Add(sendTimeout))
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", s.format.contentType())
		// A proxy that collects the answer would keep it forever.
		s.w.Header().Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	if _, err := s.w.Write(b); err != nil {
		return status.Error(codes.Canceled, "the client has gone")
	}
	if err := s.control.Flush(); err != nil {
		return status.Error(codes.Canceled, "the client has gone")
	}
	return nil
}

// beat keeps a quiet stream alive where its format has a way to, and returns
// what ends that.
func (s *stream[T]) beat() (stop func()) {
	alive := s.format.alive()
	if alive == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(keepAlive)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s.mu.Lock()
			if s.started && s.flush(alive) != nil {
				cancel()
			}
			s.mu.Unlock()
		}
	})
	return func() { cancel(); done.Wait() }
}

// end reports an error, within the stream if it has begun.
func (s *stream[T]) end(log *zap.Logger, r *http.Request, err error) {
	if why := auth.Ended(r.Context()); why != nil {
		err = why
	} else if err == nil || r.Context().Err() != nil {
		return
	}
	if !s.started {
		writeError(r.Context(), nil, nil, s.w, r, err)
		return
	}
	b, encodeErr := s.format.failure(status.Convert(err))
	if encodeErr != nil {
		log.Warn("failed to encode the error of a stream", zap.Error(encodeErr))
		return
	}
	if s.flush(b) != nil {
		log.Debug("client left before the end of its stream")
	}
}

// The rest of a gRPC stream has no meaning here.

func (s *stream[T]) SetHeader(metadata.MD) error { return nil }
func (s *stream[T]) SetTrailer(metadata.MD)      {}
func (s *stream[T]) SendMsg(any) error           { return status.Error(codes.Internal, "not a raw stream") }
func (s *stream[T]) RecvMsg(any) error           { return status.Error(codes.Internal, "not a raw stream") }

// wants picks the first format that the client accepts by name, and else the
// first of them all.
func wants(r *http.Request, formats ...format) format {
	for _, part := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
		kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		for _, f := range formats {
			if kind != "" && strings.HasPrefix(f.contentType(), strings.ToLower(kind)) {
				return f
			}
		}
	}
	return formats[0]
}
