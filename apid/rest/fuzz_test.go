package rest_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/rest"
	"github.com/musterhq/muster/internal/auth"
)

// writes counts the calls that a viewer must not reach.
type writes struct {
	musterv1.UnimplementedControlServiceServer
	reached atomic.Int64
	// service is what the last read asked for.
	service atomic.Pointer[string]
}

func (w *writes) CreateService(context.Context, *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	w.reached.Add(1)
	return &musterv1.CreateServiceResponse{}, nil
}

func (w *writes) RemoveService(context.Context, *musterv1.RemoveServiceRequest) (*musterv1.RemoveServiceResponse, error) {
	w.reached.Add(1)
	return &musterv1.RemoveServiceResponse{}, nil
}

func (w *writes) ScaleService(context.Context, *musterv1.ScaleServiceRequest) (*musterv1.ScaleServiceResponse, error) {
	w.reached.Add(1)
	return &musterv1.ScaleServiceResponse{}, nil
}

func (w *writes) RemoveNode(context.Context, *musterv1.RemoveNodeRequest) (*musterv1.RemoveNodeResponse, error) {
	w.reached.Add(1)
	return &musterv1.RemoveNodeResponse{}, nil
}

func (w *writes) GetService(_ context.Context, r *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	w.service.Store(&r.Service)
	return &musterv1.GetServiceResponse{}, nil
}

// FuzzRequest sends requests of any method, path, query and body as a viewer. None
// is an internal error, none reaches what a viewer may not, what is answered is
// JSON, and a name that is read from a path has no slash.
func FuzzRequest(f *testing.F) {
	server := &writes{}
	var removed atomic.Bool
	guards := map[string]*auth.Guard{"viewer": guardOf(f, zap.NewNop(), &removed), "anybody": nil}
	handlers := map[string]http.Handler{}
	for name, guard := range guards {
		h, err := rest.New(server, func(context.Context) error { return nil }, guard, nil, zap.NewNop())
		if err != nil {
			f.Fatal(err)
		}
		handlers[name] = h
	}
	for _, path := range []string{
		"/v1/services", "/v1/services/web", "/v1/services/web:scale", "/v1/services/%2e%2e/nodes", "/v1//services", "/v1/services/a%2fb",
		"/v1%2fservices%2fweb", "/v1/services/../nodes/n1", "/v1/services/web%00", "/v1/services/%ff", "/v1/watch", "/v1/services/web/logs", "/healthz", "//host/v1/services",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "get"} {
			f.Add(method, path, "pageSize=1&names=a&names=b", `{"replicas":1}`)
		}
	}
	f.Add("GET", "/v1/services/web", "insertDefaults=%zz&service=other&x.y.z=1", "")
	f.Add("PUT", "/v1/nodes/n1", "version=18446744073709551616", `{"availability":"DRAIN"}`)
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Host != "" && !strings.HasPrefix(path, "//") || !token(method) {
			return
		}
		u.RawQuery = query
		for name, handler := range handlers {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://h/", strings.NewReader(body))
			r.Method, r.URL, r.RequestURI = method, u, path
			r.Header.Set("Authorization", "Bearer good")
			r.Header.Set("Content-Type", "application/json")
			server.reached.Store(0)
			server.service.Store(nil)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code >= 500 && w.Code != http.StatusNotImplemented {
				t.Errorf("%s: %s %q?%q: status %d: %s", name, method, path, query, w.Code, w.Body)
			}
			if name == "viewer" && server.reached.Load() > 0 {
				t.Errorf("%s %q reached what a viewer may not", method, path)
			}
			if s := server.service.Load(); s != nil && strings.Contains(*s, "/") {
				t.Errorf("%s %q asks for service %q", method, path, *s)
			}
			if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s %q is answered with %q", method, path, w.Body)
			}
			if to := w.Header().Get("Location"); strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`) {
				t.Errorf("%s %q is sent to %q", method, path, to)
			}
		}
	})
}

// token tells whether a text may be a method of HTTP.
func token(s string) bool {
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) {
			return false
		}
	}
	return s != ""
}
