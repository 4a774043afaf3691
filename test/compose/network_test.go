package compose_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/musterhq/muster/test/kit/wait"
)

// networks has one service ask another by its name, and is asked itself at a published
// port of this machine. The worker is in a container, its tasks' networks are not.
func networks(t *testing.T, s *site, api *client) {
	if code, answer := api.call(t, http.MethodPost, "/v1/networks", map[string]any{"name": "back"}); code != http.StatusOK {
		t.Fatalf("create network: %d %v", code, answer)
	}
	port := freePort(t)
	api.create(t, s.networked("answer", `busybox mkdir -p /www; echo hello from answer >/www/hello; exec busybox httpd -f -p 8000 -h /www`))
	ask := s.networked("ask", `busybox mkdir -p /www/cgi-bin; echo hello from ask >/www/hello
printf '#!/bin/busybox sh\necho\nbusybox wget -qO- http://answer:8000/hello\n' >/www/cgi-bin/ask
busybox chmod +x /www/cgi-bin/ask
exec busybox httpd -f -p 8000 -h /www`)
	ask["endpoint"] = map[string]any{"ports": []any{map[string]any{"targetPort": 8000, "publishedPort": port}}}
	api.create(t, ask)
	api.awaitRunning(t, "answer", 1)
	api.awaitRunning(t, "ask", 1)
	reached := func(when, path, want string) {
		t.Helper()
		wait.Within(t, waitTimeout, "the published port answers "+when, func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			if err == nil && string(body) != want {
				err = fmt.Errorf("%s %q", resp.Status, body)
			}
			return err
		})
	}
	reached("at first", "/cgi-bin/ask", "hello from answer\n")
	if len(kernelState(t, api.node(t))) == 0 {
		t.Error("no network namespace is on this machine")
	}
	s.docker(t, "kill", s.containers(t, "worker")[0])
	// Connections outlive a worker's container, names do not.
	reached("without a worker", "/hello", "hello from ask\n")
	s.script(t, "up")
	reached("with the next worker", "/cgi-bin/ask", "hello from answer\n")
}

// networked is a service of one container with a shell script, on the network back.
func (s *site) networked(name, script string) map[string]any {
	spec := s.web(name, 1)
	task, _ := spec["task"].(map[string]any)
	container, _ := task["container"].(map[string]any)
	container["args"] = []string{"busybox", "sh", "-c", script}
	task["networks"] = []any{map[string]any{"target": "back"}}
	return spec
}

func freePort(t *testing.T) int {
	t.Helper()
	for port := 20000; port < 30000; port++ {
		if free(port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// kernelState returns the names of what networks of a node's tasks have on this machine.
func kernelState(t *testing.T, node string) []string {
	t.Helper()
	sum := sha256.Sum256([]byte(node))
	names, err := filepath.Glob("/run/netns/muster-" + hex.EncodeToString(sum[:4]) + "-*")
	must(t, err)
	return names
}
