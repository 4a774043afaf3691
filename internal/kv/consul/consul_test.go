package consul_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/kv/kvtest"
	"github.com/musterhq/muster/test/kit/consultest"
)

// patience bounds every wait of these tests.
const patience = 2 * time.Minute

var shared consultest.Shared

func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

func TestConformance(t *testing.T) {
	server := shared.Start(t)
	kvtest.Run(t, func(t *testing.T) kv.KV { return server.KV(t) })
}

func TestConformanceBehindFaults(t *testing.T) {
	server := shared.Start(t)
	kvtest.Run(t, func(t *testing.T) kv.KV { return kvfault.New(server.KV(t)) })
}

// TestTooLargeForServer meets a server that allows less than the default.
func TestTooLargeForServer(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t, "limits { kv_max_value_size = 10000 txn_max_req_len = 10000 }")
	value := make([]byte, 20_000)
	_, _ = rand.Read(value) // which never fails, and cannot be compressed
	_, err := server.KV(t).Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "a", Value: value}})
	if !errors.Is(err, kv.ErrTooLarge) || errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Txn error = %v, want ErrTooLarge alone", err)
	}
}

// service is a process as the catalog is told of it; it listens until the test
// ends or the listener is closed.
func service(t *testing.T, id string) (*kv.Service, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return &kv.Service{
		ID: id, Name: "test", Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, CheckAddress: l.Addr().String(),
	}, l
}

func openSession(t *testing.T, s *consul.KV, service *kv.Service) kv.Session {
	t.Helper()
	x, err := s.NewSession(t.Context(), kv.SessionConfig{Name: t.Name(), Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func closeSession(t *testing.T, x kv.Session) {
	t.Helper()
	if err := x.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func expectLost(t *testing.T, x kv.Session) {
	t.Helper()
	select {
	case <-x.Lost():
	case <-time.After(patience):
		t.Fatalf("the session does not say that it is lost after %v", patience)
	}
}

// ask asks Consul itself.
func ask(t *testing.T, server *consultest.Server, method, path string, answer any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+server.Address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

func inCatalog(t *testing.T, server *consultest.Server, id string) bool {
	t.Helper()
	services := map[string]any{}
	ask(t, server, http.MethodGet, "/v1/agent/services", &services)
	return services[id] != nil
}

func sessionLives(t *testing.T, server *consultest.Server, id string) bool {
	t.Helper()
	var found []any
	ask(t, server, http.MethodGet, "/v1/session/info/"+id, &found)
	return len(found) > 0
}

func BenchmarkConsul(b *testing.B) {
	server := shared.Start(b)
	kvtest.Bench(b, func(b *testing.B) kv.KV { return server.KV(b) })
}
