package dockerapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi"
)

// control is a control API without objects.
type control struct {
	musterv1.UnimplementedControlServiceServer
}

func (control) GetService(context.Context, *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	return nil, status.Error(codes.NotFound, "no such service")
}

func (control) GetNetwork(context.Context, *musterv1.GetNetworkRequest) (*musterv1.GetNetworkResponse, error) {
	return nil, status.Error(codes.NotFound, "no such network")
}

// fakeEngine answers everything, and remembers what it was asked.
type fakeEngine struct {
	mu    sync.Mutex
	asked []string
}

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.44")
	if r.Method == http.MethodHead && r.URL.Path == "/_ping" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, r.Method+" "+r.URL.EscapedPath())
	_ = json.NewEncoder(w).Encode(map[string]string{"from": "engine"})
}

func (e *fakeEngine) requests() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	asked := e.asked
	e.asked = nil
	return asked
}

// serve serves the Docker API in front of an Engine, and returns its address.
func serve(t *testing.T, engine http.Handler) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "engine.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	behind := &httptest.Server{Listener: l, Config: &http.Server{Handler: engine}}
	behind.Start()
	t.Cleanup(behind.Close)
	api := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	musterv1.RegisterControlServiceServer(s, control{})
	go func() { _ = s.Serve(api) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:///api", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return api.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	handler, err := dockerapi.Handler(dockerapi.Config{Client: musterv1.NewControlServiceClient(conn), Logger: zap.NewNop(), Version: "1", Engine: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(handler)
	t.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

// send sends a request with exactly this path, and returns the status of the answer.
func send(t *testing.T, address, method, path string, header ...string) int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: docker", "Content-Type: application/json", "Content-Length: 2", "Connection: close"}, header...)
	if _, err := fmt.Fprint(conn, strings.Join(lines, "\r\n")+"\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestEngineGetsNothingOfTheCluster sends paths that the server and an Engine could read
// differently. The Engine's own swarm must stay out of reach: clients would take it for the
// cluster.
func TestEngineGetsNothingOfTheCluster(t *testing.T) {
	engine := &fakeEngine{}
	address := serve(t, engine)
	for _, path := range []string{
		"/v1.41.0/swarm/init", "/v1/swarm/init", "/v1./swarm/init", "/v1..41/swarm/init", "/v.1/services/create", "/v00001.41/services", "/v1%2E41.0/services",
		"/v1.41/swarm", "/v1.41/swarm/other", "/v1.41/services/a%2Fb", "/v1.41/services/a/b/c", "/services", "/services/", "/v1.41/tasks/x", "/v1.41/nodes/a/b",
		"/v1.41/../v1.41.0/swarm/init", "/v1.41/containers/../swarm/x", "/v1.41/containers/%2e%2e/swarm/x", "//v1.41//swarm//x", "/v1.41//swarm/x", "/v1.41/%73warm/x",
		"/v1.41/secrets/x/y", "/configs/x/y", "/v1.41/services/%ff", "/v1.41/networks/%ff",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"} {
			code := send(t, address, method, path)
			if asked := engine.requests(); len(asked) > 0 && !strings.Contains(path, "/networks/") {
				t.Errorf("%s %s: the Engine was asked %q", method, path, asked)
			}
			if code < 300 || code >= 500 && code != http.StatusNotImplemented {
				t.Errorf("%s %s: status %d", method, path, code)
			}
		}
	}
	if code := send(t, address, "POST", "/v1.41/services/create", "X-Registry-Auth: \xff\xfe"); code != http.StatusBadRequest {
		t.Errorf("credentials that are no text: status %d", code)
	}
}

// TestEngineIsAskedInTheVersionOfTheClient has requests that a route looks at before an
// Engine gets them. What it answers depends on the version.
func TestEngineIsAskedInTheVersionOfTheClient(t *testing.T) {
	engine := &fakeEngine{}
	address := serve(t, engine)
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/v1.41/networks/a", "/v1.41/networks/a"},
		{"GET", "/networks/a", "/v1.44/networks/a"},
		{"GET", "/v1.41/system/df", "/v1.41/system/df"},
		{"POST", "/v1.41/networks/create", "/v1.41/networks/create"},
		{"GET", "/v1.41/containers/json", "/v1.41/containers/json"},
		{"GET", "/v1.41/images/a%2Fb/json", "/v1.41/images/a%2Fb/json"},
	} {
		send(t, address, c.method, c.path)
		if asked := engine.requests(); !slices.Equal(asked, []string{c.method + " " + c.want}) {
			t.Errorf("%s %s: the Engine was asked %q, want %s", c.method, c.path, asked, c.want)
		}
	}
}
