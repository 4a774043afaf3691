package security_test

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/test/kit/consultest"
)

// TestPagesOfOtherSitesDoNothing asks a cluster in the clear as a page does whose site's
// name leads to a daemon's address (DNS rebinding): for the browser the daemon is the
// page's own site.
func TestPagesOfOtherSitesDoNothing(t *testing.T) {
	consul := consultest.Start(t)
	free := freeAddresses(t, 4)
	rest, ops, worker := free[1], free[2], free[3]
	c := &closed{t: t, dir: t.TempDir()}
	c.daemon("apid", "--consul-address", consul.Address, "--listen", free[0], "--rest-listen", rest, "--ops-listen", ops, "--allowed-host", "muster.example")
	c.daemon("workerd", "--data-dir", filepath.Join(c.dir, "worker"), "--dispatcher", free[0], "--ops-listen", worker)
	ask := func(method, address, path, host, body string) (int, string) {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
			r.Header.Set("Origin", "http://"+host)
			r.Header.Set("Sec-Fetch-Site", "same-origin")
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		said, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(said)
	}
	for address, path := range map[string]string{rest: "/v1/services", ops: "/livez", worker: "/livez"} {
		c.eventually(address+" serves", func() bool {
			code, _ := ask(http.MethodGet, address, path, "", "")
			return code == http.StatusOK
		})
	}
	const spec = `{"name":"evil","replicated":{"replicas":1},"task":{"container":{"image":"nginx"}}}`
	for name, test := range map[string]struct {
		method, address, path, host, body string
		want                              int
	}{
		"a page creates a service": {http.MethodPost, rest, "/v1/services", "evil.example", spec, http.StatusForbidden},
		"a page with a port":       {http.MethodPost, rest, "/v1/services", "evil.example:7780", spec, http.StatusForbidden},
		"a page reads nodes":       {http.MethodGet, rest, "/v1/nodes", "evil.example", "", http.StatusForbidden},
		"a page reads a profile":   {http.MethodGet, ops, "/debug/pprof/cmdline", "evil.example", "", http.StatusForbidden},
		"a page reads metrics":     {http.MethodGet, ops, "/metrics", "evil.example", "", http.StatusForbidden},
		"a page asks a worker":     {http.MethodGet, worker, "/debug/pprof/cmdline", "evil.example", "", http.StatusForbidden},
		"an allowed name":          {http.MethodGet, rest, "/v1/nodes", "muster.example", "", http.StatusOK},
		"an allowed name, ops":     {http.MethodGet, ops, "/metrics", "muster.example:8700", "", http.StatusOK},
		"localhost":                {http.MethodGet, rest, "/v1/nodes", "localhost:7780", "", http.StatusOK},
		"an address":               {http.MethodGet, worker, "/debug/pprof/cmdline", "10.1.2.3:8705", "", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			code, said := ask(test.method, test.address, test.path, test.host, test.body)
			if code != test.want {
				t.Errorf("status %d, want %d: %s", code, test.want, said)
			}
			if code == http.StatusForbidden && !strings.Contains(said, "--allowed-host") {
				t.Errorf("the refusal names no setting: %s", said)
			}
		})
	}
	if _, said := ask(http.MethodGet, rest, "/v1/services", "", ""); strings.Contains(said, "evil") {
		t.Errorf("there is a service of the page's: %s", said)
	}
	// The same request from a client that is no page is good.
	if code, said := ask(http.MethodPost, rest, "/v1/services", "", spec); code != http.StatusOK {
		t.Errorf("a service that is created by address: status %d, %s", code, said)
	}
}
