// Package server is the frame of Docker's API: versions, routes, bodies, filters and errors
// as Docker's clients expect them.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
)

const (
	// Oldest and Newest are the versions of Docker's API that are served.
	Oldest = "1.24"
	Newest = "1.57"

	// maxBody bounds a request's body: a config of 1000 KiB in base64, with room.
	maxBody = 4 << 20
	// callTimeout bounds a request that is not a stream.
	callTimeout = 30 * time.Second
)

// Handler answers a request, or returns why it does not.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Config is what a Server needs.
type Config struct {
	// Version is Muster's.
	Version string
	Logger  *zap.Logger
	// Limit returns the newest version that is offered, if that is less than Newest
	// because of an Engine behind. Nil: Newest.
	Limit func(ctx context.Context) string
	// Rest answers what no route is for.
	Rest http.Handler
}

// Server routes requests.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// New returns a server without routes.
func New(cfg Config) *Server { return &Server{cfg: cfg, mux: http.NewServeMux()} }

// Handle adds a route whose handler has a deadline: "GET /services/{id}".
func (s *Server) Handle(pattern string, h Handler) {
	s.Stream(pattern, func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		return h(w, r.WithContext(ctx))
	})
}

// Stream adds a route whose handler takes as long as its client wants.
func (s *Server) Stream(pattern string, h Handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		begun := &startedWriter{ResponseWriter: w}
		err := h(begun, r)
		if err == nil {
			return
		}
		e := statusOf(err)
		s.cfg.Logger.Debug("request failed", zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.Int("status", e.Status), zap.Error(err))
		// What has begun can only be cut off.
		if !begun.started {
			WriteError(w, e.Status, e.Message)
		}
	})
}

// startedWriter knows whether an answer has begun.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

func (w *startedWriter) WriteHeader(code int) {
	w.started = true
	w.ResponseWriter.WriteHeader(code)
}

func (w *startedWriter) Write(p []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] reach the server's own writer.
func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// versioned matches paths that Docker reads as ones with a version, also with one that is
// malformed: an Engine must not get a path that this server understands otherwise.
var versioned = regexp.MustCompile(`^/v([0-9.]+)(/.*)$`)

var wellFormed = regexp.MustCompile(`^\d{1,4}\.\d{1,4}$`)

type versionKey struct{}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	newest := s.newest(r.Context())
	h := w.Header()
	h.Set("Api-Version", newest)
	h.Set("Ostype", runtime.GOOS)
	h.Set("Server", fmt.Sprintf("Muster/%s (%s)", s.cfg.Version, runtime.GOOS))
	if !utf8.ValidString(r.URL.Path) {
		WriteError(w, http.StatusBadRequest, "the path is not UTF-8")
		return
	}
	if clean := cleaned(r.URL.Path); clean != r.URL.Path {
		// As in Docker. Otherwise a path could mean different things here and there.
		http.Redirect(w, r, (&url.URL{Path: clean, RawQuery: r.URL.RawQuery}).String(), http.StatusMovedPermanently)
		return
	}
	version := newest
	if m := versioned.FindStringSubmatch(r.URL.Path); m != nil {
		version = m[1]
		switch {
		case !wellFormed.MatchString(version):
			WriteError(w, http.StatusBadRequest, fmt.Sprintf("malformed API version %s: want one such as %s", version, Newest))
			return
		case less(version, Oldest):
			WriteError(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, Oldest))
			return
		case less(newest, version):
			WriteError(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", version, newest))
			return
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), versionKey{}, version))
	routed := r.Clone(r.Context())
	if m := versioned.FindStringSubmatch(routed.URL.Path); m != nil {
		routed.URL.Path, routed.URL.RawPath = m[2], ""
	}
	routed.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if _, pattern := s.mux.Handler(routed); pattern != "" {
		s.mux.ServeHTTP(w, routed)
		return
	}
	s.cfg.Rest.ServeHTTP(w, r)
}

func (s *Server) newest(ctx context.Context) string {
	if s.cfg.Limit == nil {
		return Newest
	}
	if limit := s.cfg.Limit(ctx); limit != "" && less(limit, Newest) && !less(limit, Oldest) {
		return limit
	}
	return Newest
}

// Version returns the version that the client speaks.
func Version(ctx context.Context) string {
	if v, ok := ctx.Value(versionKey{}).(string); ok {
		return v
	}
	return Newest
}

// cleaned returns a path without elements that are empty or dots.
func cleaned(p string) string {
	clean := path.Clean("/" + p)
	if clean != "/" && strings.HasSuffix(p, "/") {
		clean += "/"
	}
	return clean
}

// Versioned returns a path with the version that the client speaks, if it has none.
func Versioned(ctx context.Context, path string) string {
	if versioned.MatchString(path) {
		return path
	}
	return "/v" + Version(ctx) + path
}

// Before tells whether the client speaks a version older than the given one.
func Before(ctx context.Context, version string) bool { return less(Version(ctx), version) }

func less(a, b string) bool {
	var aMajor, aMinor, bMajor, bMinor int
	_, errA := fmt.Sscanf(a, "%d.%d", &aMajor, &aMinor)
	_, errB := fmt.Sscanf(b, "%d.%d", &bMajor, &bMinor)
	return errA == nil && errB == nil && (aMajor < bMajor || aMajor == bMajor && aMinor < bMinor)
}

// Decode reads a body of JSON. Fields that Docker's type does not have are ignored, as
// Docker does.
func Decode(r *http.Request, into any) error {
	if t := r.Header.Get("Content-Type"); t != "" {
		if kind, _, err := mime.ParseMediaType(t); err != nil || kind != "application/json" {
			return Errorf(http.StatusBadRequest, "unsupported Content-Type header (%s): must be 'application/json'", t)
		}
	}
	d := json.NewDecoder(r.Body)
	if err := d.Decode(into); err != nil {
		return badBody(err)
	}
	if d.More() {
		return Errorf(http.StatusBadRequest, "unexpected content after JSON")
	}
	return nil
}

func badBody(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return Errorf(http.StatusRequestEntityTooLarge, "the request's body exceeds %d bytes", large.Limit)
	case errors.Is(err, io.EOF):
		return Errorf(http.StatusBadRequest, "invalid JSON: got EOF while reading request body")
	}
	return Errorf(http.StatusBadRequest, "invalid JSON: %v", err)
}

// WriteJSON answers with JSON as Docker writes it.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Bool reads a flag of the query as Docker does: anything but "", "0", "no", "false" and
// "none" is true.
func Bool(r *http.Request, name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.URL.Query().Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
