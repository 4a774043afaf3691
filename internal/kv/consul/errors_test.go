package consul_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
)

var classes = []error{kv.ErrNotFound, kv.ErrConflict, kv.ErrTooLarge, kv.ErrUnavailable, kv.ErrSessionLost}

// expectClass checks that an error is of one class, or of none.
func expectClass(t *testing.T, call string, err, want error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", call)
	}
	for _, class := range classes {
		if errors.Is(err, class) != errors.Is(want, class) {
			t.Errorf("%s: error = %v, want one of class %v", call, err, want)
			return
		}
	}
}

func client(t *testing.T, address string) *consul.KV {
	t.Helper()
	s, err := consul.New(consul.Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// answering is a server that gives one answer to everything.
func answering(t *testing.T, status int, body string) *consul.KV {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return client(t, strings.TrimPrefix(server.URL, "http://"))
}

func TestStatusClasses(t *testing.T) {
	set := kv.Op{Verb: kv.Set, Key: "a"}
	cas := kv.Op{Verb: kv.CAS, Key: "a", Index: 7}
	tests := map[string]struct {
		status int
		body   string
		want   error
	}{
		"no leader":           {500, "No cluster leader", kv.ErrUnavailable},
		"maintenance":         {503, "", kv.ErrUnavailable},
		"proxy":               {504, "<html>", kv.ErrUnavailable},
		"too large":           {413, "too large", kv.ErrTooLarge},
		"too large in words":  {500, "Request body too large", kv.ErrUnavailable},
		"forbidden":           {403, "Permission denied", nil},
		"not understood":      {400, "Failed to parse body", nil},
		"session, by its 500": {500, "invalid session", kv.ErrUnavailable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := answering(t, test.status, test.body)
			_, err := s.Txn(t.Context(), []kv.Op{set})
			expectClass(t, "Txn", err, test.want)
			_, err = s.Get(t.Context(), "a")
			expectClass(t, "Get", err, test.want)
			_, _, err = s.List(t.Context(), "a", kv.ListOptions{})
			expectClass(t, "List", err, test.want)
			_, err = s.NewSession(t.Context(), kv.SessionConfig{})
			expectClass(t, "NewSession", err, test.want)
		})
	}
	refusals := map[string]struct {
		ops  []kv.Op
		body string
		want error
	}{
		"a check that does not hold": {[]kv.Op{set, cas}, `{"Errors":[{"OpIndex":1,"What":"index is stale"}]}`, kv.ErrConflict},
		"two that do not":            {[]kv.Op{cas, cas}, `{"Errors":[{"OpIndex":0,"What":"x"},{"OpIndex":1,"What":"x"}]}`, kv.ErrConflict},
		"a write without a check":    {[]kv.Op{set, cas}, `{"Errors":[{"OpIndex":0,"What":"Permission denied"}]}`, nil},
		"one of each":                {[]kv.Op{cas, set}, `{"Errors":[{"OpIndex":0,"What":"x"},{"OpIndex":1,"What":"Permission denied"}]}`, nil},
		"no reason":                  {[]kv.Op{cas}, `{"Errors":[]}`, nil},
		"no JSON":                    {[]kv.Op{cas}, `<html>`, kv.ErrUnavailable},
		"an operation not sent":      {[]kv.Op{cas}, `{"Errors":[{"OpIndex":5,"What":"x"}]}`, nil},
	}
	for name, test := range refusals {
		t.Run(name, func(t *testing.T) {
			_, err := answering(t, http.StatusConflict, test.body).Txn(t.Context(), test.ops)
			expectClass(t, "Txn", err, test.want)
		})
	}
}

func TestUnreachable(t *testing.T) {
	s := client(t, "127.0.0.1:1")
	_, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "a"}})
	expectClass(t, "Txn", err, kv.ErrUnavailable)
	_, err = s.Get(t.Context(), "a")
	expectClass(t, "Get", err, kv.ErrUnavailable)
	_, _, err = s.List(t.Context(), "a", kv.ListOptions{After: 7})
	expectClass(t, "List", err, kv.ErrUnavailable)
	_, err = s.NewSession(t.Context(), kv.SessionConfig{Service: &kv.Service{ID: "a"}})
	expectClass(t, "NewSession", err, kv.ErrUnavailable)
}

// TestNoAnswer meets a server that takes requests and says nothing.
func TestNoAnswer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	s := client(t, strings.TrimPrefix(server.URL, "http://"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: "a"}})
	expectClass(t, "Txn", err, kv.ErrUnavailable)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Txn error = %v, want the context's in it", err)
	}
}

// TestCutShort meets a server that breaks off within an answer.
func TestCutShort(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"Results":[`)
	}))
	t.Cleanup(server.Close)
	_, err := client(t, strings.TrimPrefix(server.URL, "http://")).Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "a"}})
	expectClass(t, "Txn", err, kv.ErrUnavailable)
}

// TestReadsAreConsistent looks at what is asked for: a leader that was elected a
// moment ago may know of nothing yet, and still answers unless it must
// make sure.
func TestReadsAreConsistent(t *testing.T) {
	t.Parallel()
	asked := make(chan url.Values, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Query()
		w.Header().Set("X-Consul-Index", "7")
		_, _ = w.Write([]byte("[]"))
	}))
	t.Cleanup(server.Close)
	s, err := consul.New(consul.Config{Address: server.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for name, tt := range map[string]struct {
		read  func() error
		stale bool
	}{
		"get":                {func() error { _, err := s.Get(t.Context(), "a"); return err }, false},
		"list":               {func() error { _, _, err := s.List(t.Context(), "a", kv.ListOptions{}); return err }, false},
		"list of any server": {func() error { _, _, err := s.List(t.Context(), "a", kv.ListOptions{Stale: true}); return err }, true},
	} {
		// What becomes of an answer that is no key is not looked at here.
		if err := tt.read(); err != nil && !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		q := <-asked
		if q.Has("consistent") == tt.stale || q.Has("stale") != tt.stale {
			t.Errorf("%s asks with %v", name, q)
		}
	}
}
