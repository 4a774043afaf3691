// Package rest serves the control API over HTTP: the routes that the contract's
// annotations give, plus /openapi.json and /healthz.
//
// Unary calls go through grpc-gateway straight into the service, without a
// connection in between: what a loopback connection would add (interceptors,
// one more encoding) is not needed here, and costs more than the call itself.
// Streams (watch, logs) and the checking of requests are this package's own,
// for grpc-gateway ignores unknown query parameters, loses the details of
// errors in bodies, and does not stream without a connection.
package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/api/openapi"
	gateway "github.com/musterhq/muster/apid/gateway"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/limit"
	"github.com/musterhq/muster/internal/terminal"
)

// maxBody bounds the body of a request: more than any spec that passes
// validation has in JSON.
const maxBody = 2 << 20

// New returns the handler. Healthy says whether the server can do its work,
// guard who may call what, and limits how often.
func New(server musterv1.ControlServiceServer, healthy func(context.Context) error, guard *auth.Guard, limits *limit.Limits, log *zap.Logger) (http.Handler, error) {
	known, err := contractRoutes()
	if err != nil {
		return nil, err
	}
	routes := &routes{known, guard, limits}
	m := marshaler{&runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{},
		UnmarshalOptions: protojson.UnmarshalOptions{},
	}}
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, m),
		runtime.WithErrorHandler(writeError),
		runtime.WithRoutingErrorHandler(routingError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithMiddlewares(routes.check),
		// Nothing of a client's headers is passed on, and of the service's only what
		// says how old an answer may be.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(name string) (string, bool) { return name, name == musterv1.StaleHeader }),
	)
	if err := gateway.RegisterControlServiceHandlerServer(context.Background(), mux, server); err != nil {
		return nil, fmt.Errorf("register REST routes: %w", err)
	}
	s := &streams{server: server, log: log}
	for path, handler := range map[string]runtime.HandlerFunc{
		"/v1/watch":                   s.watch,
		"/v1/services/{service}/logs": s.serviceLogs,
		"/v1/tasks/{task}/logs":       s.taskLogs,
	} {
		// What is registered later is matched first.
		if err := mux.HandlePath(http.MethodGet, path, handler); err != nil {
			return nil, fmt.Errorf("register REST route %s: %w", path, err)
		}
	}
	root := http.NewServeMux()
	// A page of another site in a user's browser changes nothing: neither on a
	// machine of its own nor with the client certificate that the browser has.
	root.Handle("/", http.NewCrossOriginProtection().Handler(bounded(mux)))
	root.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openapi.Document())
	})
	root.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		answer, code := map[string]string{"status": "ok"}, http.StatusOK
		if err := healthy(r.Context()); err != nil {
			answer, code = map[string]string{"status": "unavailable"}, http.StatusServiceUnavailable
			if guard == nil {
				// Where callers need credentials, those without any are not told why.
				answer["reason"] = err.Error()
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(answer)
	})
	return root, nil
}

// bounded keeps requests within bounds and answers from being taken for
// anything but data.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if strings.Contains(strings.ToLower(r.URL.EscapedPath()), "%2f") {
			// The gateway takes it for a slash, and a proxy that lets some paths pass does
			// not. No name has one.
			routingError(r.Context(), nil, nil, w, r, http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// writeError answers with a google.rpc.Status, its details included.
func writeError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	var over *runtime.HTTPStatusError
	code := 0
	if errors.As(err, &over) {
		err, code = over.Err, over.HTTPStatus
	}
	s := status.Convert(err)
	if code == 0 {
		code = runtime.HTTPStatusFromCode(s.Code())
	}
	for _, d := range s.Details() {
		if again, ok := d.(*errdetails.RetryInfo); ok {
			// HTTP knows whole seconds.
			w.Header().Set("Retry-After", strconv.FormatFloat(math.Ceil(again.RetryDelay.AsDuration().Seconds()), 'f', 0, 64))
		}
	}
	writeStatus(w, code, s)
}

func writeStatus(w http.ResponseWriter, code int, s *status.Status) {
	body, err := protojson.Marshal(s.Proto())
	if err != nil {
		// A detail of a type that this program does not know.
		body, _ = json.Marshal(map[string]any{"code": s.Code(), "message": s.Message()})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(terminal.JSON(body), '\n'))
}

func routingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	s := status.Newf(codes.InvalidArgument, "%s", http.StatusText(code))
	switch code {
	case http.StatusNotFound:
		s = status.Newf(codes.NotFound, "there is no %s; see /openapi.json", clip(r.URL.Path))
	case http.StatusMethodNotAllowed:
		s = status.Newf(codes.Unimplemented, "%s is not possible on %s; see /openapi.json", clip(r.Method), clip(r.URL.Path))
	}
	writeStatus(w, code, s)
}

func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%.*s...", most, s)
}
