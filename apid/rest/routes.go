package rest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"regexp"
	"sort"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/limit"
)

// route is what the contract says of one method and path.
type route struct {
	// method is gRPC's name of the call.
	method  string
	request protoreflect.MessageDescriptor
	// body is the field that the body is for, "*" for all, "" for none.
	body string
	// bodyType is the type of the body's message.
	bodyType protoreflect.MessageType
	// streams says that the answer is a stream.
	streams bool
}

// routes are what there is, who may call it, and how often.
type routes struct {
	// known holds routes under "<method> <path>".
	known  map[string]route
	guard  *auth.Guard
	limits *limit.Limits
}

// contractRoutes reads the routes from the contract's annotations.
func contractRoutes() (map[string]route, error) {
	all := map[string]route{}
	service := musterv1.File_muster_v1_control_proto.Services().ByName("ControlService")
	if service == nil {
		return nil, errors.New("the contract has no ControlService")
	}
	methods := service.Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		if !ok || rule == nil {
			return nil, fmt.Errorf("method %s has no REST mapping", m.Name())
		}
		verb, path := http.MethodGet, rule.GetGet()
		switch p := rule.Pattern.(type) {
		case *annotations.HttpRule_Post:
			verb, path = http.MethodPost, p.Post
		case *annotations.HttpRule_Put:
			verb, path = http.MethodPut, p.Put
		case *annotations.HttpRule_Delete:
			verb, path = http.MethodDelete, p.Delete
		}
		rt := route{method: "/" + string(service.FullName()) + "/" + string(m.Name()), request: m.Input(), body: rule.Body, streams: m.IsStreamingServer()}
		if rt.body != "" {
			body := rt.request
			if rt.body != "*" {
				body = body.Fields().ByName(protoreflect.Name(rt.body)).Message()
			}
			var err error
			if rt.bodyType, err = protoregistry.GlobalTypes.FindMessageByName(body.FullName()); err != nil {
				return nil, fmt.Errorf("body of %s: %w", m.Name(), err)
			}
		}
		all[verb+" "+normal(path)] = rt
	}
	return all, nil
}

// normal writes a path as the gateway does: "{service}" is "{service=*}", and "{volume=**}"
// stays as it is.
func normal(path string) string { return parameter.ReplaceAllString(path, "{$1=*}") }

var parameter = regexp.MustCompile(`\{([^{}=]+)\}`)

// check refuses calls that the caller may not make, calls that are too many, and requests
// with query parameters or fields that the contract does not have. It decodes the body.
func (rs *routes) check(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		pattern, ok := runtime.HTTPPattern(r.Context())
		if !ok {
			writeStatus(w, http.StatusInternalServerError, status.New(codes.Internal, "request without a route"))
			return
		}
		rt, ok := rs.known[r.Method+" "+pattern.String()]
		if !ok {
			rt, ok = rs.known[r.Method+" "+normal(pattern.String())]
		}
		if !ok {
			writeStatus(w, http.StatusInternalServerError, status.Newf(codes.Internal, "route %s is not in the contract", pattern))
			return
		}
		ctx, err := rs.guard.AdmitREST(r, rt.method)
		if err != nil {
			writeError(r.Context(), nil, nil, w, r, err)
			return
		}
		// Handlers find the client where those of gRPC find it.
		r = r.WithContext(peer.NewContext(ctx, &peer.Peer{Addr: remote(r.RemoteAddr)}))
		if err := rs.limits.REST(r, rt.method); err != nil {
			writeError(r.Context(), nil, nil, w, r, err)
			return
		}
		if err := rt.check(r, params); err != nil {
			writeError(r.Context(), nil, nil, w, r, err)
			return
		}
		if rt.streams {
			end, err := rs.limits.Stream(r.Context(), rt.method)
			if err != nil {
				writeError(r.Context(), nil, nil, w, r, err)
				return
			}
			defer end()
			held, release := rs.guard.HoldREST(r, rt.method)
			defer release()
			r = r.WithContext(held)
		}
		next(w, r, params)
	}
}

// remote is the address that a request comes from.
type remote string

func (remote) Network() string  { return "tcp" }
func (a remote) String() string { return string(a) }

func (rt route) check(r *http.Request, params map[string]string) error {
	var report validate.Report
	rt.checkQuery(&report, r, params)
	body, err := readBody(r)
	if err != nil {
		return err
	}
	decoded := decodedBody{}
	// A body of a GET or DELETE has no meaning; some clients send "{}".
	if rt.body != "" {
		decoded.message = rt.bodyType.New().Interface()
		if len(bytes.TrimSpace(body)) > 0 {
			if err := checkType(r); err != nil {
				return err
			}
			at := ""
			if rt.body != "*" {
				at = rt.request.Fields().ByName(protoreflect.Name(rt.body)).JSONName()
			}
			decodeBody(&report, decoded.message, at, body)
		}
	}
	r.Body = decoded
	r.ContentLength = 0
	return report.Err()
}

// readBody reads the body of a request. Its size is bounded, and the server bounds the
// time.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &runtime.HTTPStatusError{HTTPStatus: http.StatusRequestTimeout,
			Err: status.Error(codes.DeadlineExceeded, "the request's body did not arrive in time")}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &runtime.HTTPStatusError{HTTPStatus: http.StatusRequestEntityTooLarge,
			Err: status.Errorf(codes.InvalidArgument, "the request's body has more than %d bytes", large.Limit)}
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, "the request's body could not be read")
	}
	return body, nil
}

// checkType wants the body to be called JSON: a page in a browser cannot send
// that to another site unasked. And it is to come as it is: nothing is unpacked.
func checkType(r *http.Request) error {
	if packed := r.Header.Get("Content-Encoding"); packed != "" && packed != "identity" {
		return &runtime.HTTPStatusError{HTTPStatus: http.StatusUnsupportedMediaType,
			Err: status.Errorf(codes.InvalidArgument, "the body must be JSON as it is, without the header Content-Encoding: %s", clip(packed))}
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json")) {
		return nil
	}
	return &runtime.HTTPStatusError{HTTPStatus: http.StatusUnsupportedMediaType,
		Err: status.Error(codes.InvalidArgument, `the body must be JSON, and the header Content-Type "application/json" (curl: --json)`)}
}

// checkQuery refuses parameters that are no field of the request.
func (rt route) checkQuery(report *validate.Report, r *http.Request, params map[string]string) {
	query := r.URL.Query()
	keys := make([]string, 0, len(query))
	for k := range query {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if _, inPath := params[key]; inPath || rt.body == "*" || !rt.isParameter(key) {
			report.Invalid(clip(key), "is not a query parameter of this request")
		}
	}
}

// isParameter reports whether a dotted path, in either spelling, names a field
// that a query can set.
func (rt route) isParameter(key string) bool {
	message := rt.request
	steps := strings.Split(key, ".")
	for i, step := range steps {
		if message == nil || (i == 0 && step == rt.body) {
			return false
		}
		fd := message.Fields().ByJSONName(step)
		if fd == nil {
			fd = message.Fields().ByName(protoreflect.Name(step))
		}
		if fd == nil || fd.IsMap() || (i < len(steps)-1 && fd.IsList()) {
			return false
		}
		message = fd.Message()
	}
	return message == nil || message.FullName().Parent() == "google.protobuf"
}
