package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func testServer(limit string) *Server {
	cfg := Config{Version: "1", Logger: zap.NewNop(), Rest: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, http.StatusTeapot, r.URL.Path)
	})}
	if limit != "" {
		cfg.Limit = func(context.Context) string { return limit }
	}
	s := New(cfg)
	s.Handle("GET /x", func(w http.ResponseWriter, r *http.Request) error {
		return WriteJSON(w, http.StatusOK, Version(r.Context()))
	})
	s.Handle("GET /fails", func(http.ResponseWriter, *http.Request) error {
		return Of(status.Error(codes.NotFound, ""), "service", "web")
	})
	s.Handle("POST /x", func(w http.ResponseWriter, r *http.Request) error {
		var in struct{ A string }
		if err := Decode(r, &in); err != nil {
			return err
		}
		return WriteJSON(w, http.StatusOK, in.A)
	})
	return s
}

func ask(s *Server, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestVersionsAreNegotiatedAsDockerDoes(t *testing.T) {
	for _, c := range []struct {
		limit, path string
		code        int
		body        string
	}{
		{"", "/x", 200, `"` + Newest + `"`},
		{"", "/v1.24/x", 200, `"1.24"`},
		{"", "/v" + Newest + "/x", 200, `"` + Newest + `"`},
		{"", "/v1.23/x", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"", "/v1.99/x", 400, "client version 1.99 is too new. Maximum supported API version is " + Newest},
		{"1.41", "/x", 200, `"1.41"`},
		{"1.41", "/v1.44/x", 400, "client version 1.44 is too new. Maximum supported API version is 1.41"},
		{"1.99", "/x", 200, `"` + Newest + `"`},
		{"1.9", "/x", 200, `"` + Newest + `"`},
		{"", "/fails", 404, "service web not found"},
		// What no route is for is handed on as it came.
		{"", "/v1.41/y", 418, "/v1.41/y"},
	} {
		w := ask(testServer(c.limit), "GET", c.path, "")
		body := strings.TrimSpace(w.Body.String())
		if c.code >= 400 {
			var e struct{ Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
				t.Errorf("%s: %q is no error of Docker's: %v", c.path, body, err)
			}
			body = e.Message
		}
		if w.Code != c.code || body != c.body {
			t.Errorf("%s with limit %q: %d %s; want %d %s", c.path, c.limit, w.Code, body, c.code, c.body)
		}
		if v := w.Header().Get("Api-Version"); v == "" {
			t.Errorf("%s: the answer does not tell the server's version", c.path)
		}
	}
}

func TestBodiesAreChecked(t *testing.T) {
	for body, want := range map[string]int{
		`{"A":"b"}`: 200, `{"A":"b","Unknown":1}`: 200, ``: 400, `{`: 400, `{"A":1}`: 400, `{} {}`: 400,
		`{"A":"` + strings.Repeat("x", maxBody) + `"}`: 413,
	} {
		if w := ask(testServer(""), "POST", "/x", body); w.Code != want {
			t.Errorf("%.20q: %d %.100s; want %d", body, w.Code, w.Body, want)
		}
	}
}

func TestErrorsHaveDockersWords(t *testing.T) {
	for _, c := range []struct {
		code   codes.Code
		kind   string
		status int
		text   string
	}{
		{codes.NotFound, "node", 404, "node x not found"},
		{codes.AlreadyExists, "service", 409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service x already exists"},
		{codes.AlreadyExists, "network", 409, "network with name x already exists"},
		{codes.AlreadyExists, "secret", 409, "rpc error: code = AlreadyExists desc = secret x already exists"},
		{codes.Aborted, "service", 500, "rpc error: code = Unknown desc = update out of sequence"},
		{codes.FailedPrecondition, "network", 400, "said"},
		{codes.InvalidArgument, "service", 400, "said"},
		{codes.Unavailable, "service", 503, "said"},
		{codes.Unimplemented, "service", 501, "said"},
		{codes.ResourceExhausted, "service", 429, "said"},
	} {
		if e := statusOf(Of(status.Error(c.code, "said"), c.kind, "x")); e.Status != c.status || e.Message != c.text {
			t.Errorf("%s of a %s: %d %q; want %d %q", c.code, c.kind, e.Status, e.Message, c.status, c.text)
		}
	}
}

func TestFiltersAreReadInBothForms(t *testing.T) {
	for text, want := range map[string]string{
		``: "", `{"name":{"a":true,"b":true}}`: "a,b", `{"name":["b"]}`: "b", `{"other":{"a":true}}`: "invalid filter 'other'",
		`x`: "invalid filter", `[]`: "invalid filter", `{"name":"a"}`: "invalid filter",
	} {
		f, err := ReadFilters(httptest.NewRequest("GET", "/x?filters="+url.QueryEscape(text), nil), "name")
		got := strings.Join(f["name"], ",")
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func FuzzFilters(f *testing.F) {
	for _, s := range []string{`{"name":{"a":true}}`, `{"name":["b"]}`, `{"label":{"a=b":true}}`, `{}`, `null`, `{"name":null}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ReadFilters(httptest.NewRequest("GET", "/x?filters="+url.QueryEscape(text), nil), "name", "label")
		if err != nil {
			return
		}
		for name := range got {
			if name != "name" && name != "label" {
				t.Errorf("filter %q was let pass", name)
			}
		}
		got.MatchLabels("label", map[string]string{"a": "b"})
		_, _ = got.Flag("name")
	})
}
