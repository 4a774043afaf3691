package compose_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/wait"
)

// client speaks REST over TLS, to whichever apid answers.
type client struct {
	http      *http.Client
	addresses []string
	token     string
}

// client returns one with what up has left for its user.
func (s *site) client(t *testing.T) *client {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(s.dir, "admin", "ca.pem"))
	must(t, err)
	token, err := os.ReadFile(filepath.Join(s.dir, "admin", "admin.token"))
	must(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("up has left no authority")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	c := &client{http: &http.Client{Transport: transport, Timeout: time.Minute}, token: strings.TrimSpace(string(token))}
	for _, id := range s.containers(t, "apid") {
		port := s.inspect(t, id, `{{(index (index .NetworkSettings.Ports "7780/tcp") 0).HostPort}}`)
		c.addresses = append(c.addresses, "localhost:"+port)
	}
	return c
}

// call calls the first apid that takes a connection and has its store, as soon as there is
// one, and returns its answer.
func (c *client) call(t *testing.T, method, path string, body any) (code int, answer map[string]any) {
	t.Helper()
	content, err := json.Marshal(body)
	must(t, err)
	wait.Within(t, waitTimeout, "an apid answers", func(ctx context.Context) error {
		var errs []error
		for _, address := range c.addresses {
			code, answer, err = c.callAt(ctx, address, method, path, content)
			if err == nil && (code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout) {
				err = fmt.Errorf("%s: %d %v", address, code, answer)
			}
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return code, answer
}

func (c *client) callAt(ctx context.Context, address, method, path string, content []byte) (int, map[string]any, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+address+path, bytes.NewReader(content))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, nil, fmt.Errorf("%s: %w", resp.Status, err)
	}
	return resp.StatusCode, answer, nil
}

// create makes a service. A call that was under way when its apid was killed may
// have done so already.
func (c *client) create(t *testing.T, spec map[string]any) {
	t.Helper()
	if code, answer := c.call(t, http.MethodPost, "/v1/services", spec); code != http.StatusOK && code != http.StatusConflict {
		t.Fatalf("create %s: %d %v", spec["name"], code, answer)
	}
}

func (c *client) scale(t *testing.T, service string, n int) {
	t.Helper()
	if code, answer := c.call(t, http.MethodPost, "/v1/services/"+service+":scale", map[string]any{"replicas": n}); code != http.StatusOK {
		t.Fatalf("scale %s: %d %v", service, code, answer)
	}
}

// awaitRunning waits until so many tasks of a service run.
func (c *client) awaitRunning(t *testing.T, service string, n int) {
	t.Helper()
	wait.Within(t, waitTimeout, fmt.Sprintf("%d tasks of %s run", n, service), func(context.Context) error {
		_, answer := c.call(t, http.MethodGet, "/v1/tasks?services="+service, nil)
		running := 0
		for _, task := range list(answer["tasks"]) {
			task, _ := task.(map[string]any)
			if status, _ := task["status"].(map[string]any); status["state"] == "RUNNING" {
				running++
			}
		}
		if running != n {
			return fmt.Errorf("%d run: %.2000v", running, answer)
		}
		return nil
	})
}

// node returns the id of the only node.
func (c *client) node(t *testing.T) string {
	t.Helper()
	_, answer := c.call(t, http.MethodGet, "/v1/nodes", nil)
	nodes := list(answer["nodes"])
	if len(nodes) != 1 {
		t.Fatalf("there are %d nodes: %v", len(nodes), answer)
	}
	node, _ := nodes[0].(map[string]any)
	id, _ := node["id"].(string)
	return id
}

// web is a service of containers.
func (s *site) web(name string, n int) map[string]any {
	return map[string]any{
		"name": name, "replicated": map[string]any{"replicas": n},
		"task": map[string]any{"container": map[string]any{
			"image": s.shell, "args": []string{"busybox", "sleep", "86400"}, "init": true,
			"pullOptions": map[string]any{"policy": "NEVER"}, "stopGracePeriod": "1s",
		}},
	}
}

// null is a service of tasks that are nothing.
func null(name string, n int) map[string]any {
	return map[string]any{
		"name": name, "replicated": map[string]any{"replicas": n},
		"task": map[string]any{"generic": map[string]any{"kind": "null"}},
	}
}
