package apid_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/limit"
)

const webJSON = `{"name":"web","replicated":{"replicas":3},"task":{"container":{"image":"nginx","env":["A=b"]}}}`

func TestREST(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		if got := a.rest("GET", "/v1/services", ""); got.code != 200 || strings.TrimSpace(got.body) != `{"services":[]}` {
			t.Errorf("no services: %d %s", got.code, got.body)
		}
		created := a.rest("POST", "/v1/services", webJSON)
		if created.code != 200 {
			t.Fatalf("create: %d %s", created.code, created.body)
		}
		id, _ := created.json["id"].(string)
		meta, _ := created.json["meta"].(map[string]any)
		version := fmt.Sprint(meta["version"])
		steps := []struct {
			name, method, path, body string
			code                     int
			want                     string
		}{
			{"get by name", "GET", "/v1/services/WEB", "", 200, id},
			{"get by prefix", "GET", "/v1/services/" + id[:10], "", 200, id},
			{"defaults", "GET", "/v1/services/web?insertDefaults=true", "", 200, `"stopGracePeriod":"10s"`},
			{"list", "GET", "/v1/services?namePrefixes=w&labels=", "", 400, "labels"},
			{"list filter", "GET", "/v1/services?names=db&names=web&pageSize=5", "", 200, id},
			{"name taken", "POST", "/v1/services", webJSON, 409, "already exists"},
			{"update", "PUT", "/v1/services/web?version=" + version, strings.Replace(webJSON, "nginx", "nginx:2", 1), 200, "nginx:2"},
			{"stale", "PUT", "/v1/services/web?version=" + version, webJSON, 409, "read it again"},
			{"no version", "PUT", "/v1/services/web", webJSON, 400, "version"},
			{"scale", "POST", "/v1/services/web:scale", `{"replicas":5}`, 200, `"desiredTasks":"5"`},
			{"rollback", "POST", "/v1/services/web:rollback", `{}`, 200, "previousSpec"},
			{"stack", "POST", "/v1/stacks?message=first", `{"name":"shop","source":"services: {}"}`, 200, `"number":"1"`},
			{"revisions", "GET", "/v1/stacks/shop/revisions", "", 200, `"message":"first"`},
			{"revision", "GET", "/v1/stacks/shop/revisions/0", "", 200, `"source":"services: {}"`},
			{"no content of stacks", "GET", "/v1/stacks", "", 200, `"spec":{"name":"shop"}`},
			{"version of stack", "PUT", "/v1/stacks/shop", `{"name":"shop"}`, 400, "version"},
			{"stack's fields", "POST", "/v1/stacks", `{"name":"other","services":[{"name":"other_web"}]}`, 400, "spec.services[0].task"},
			{"remove stack", "DELETE", "/v1/stacks/shop", "", 200, "{}"},
			{"volumes", "GET", "/v1/volumes", "", 501, "not implemented"},
			{"jobs", "POST", "/v1/services", `{"name":"j","replicatedJob":{},"task":{"container":{"image":"nginx"}}}`, 501, "spec.replicatedJob"},
			{"not found", "GET", "/v1/services/nope", "", 404, "nope"},
			{"no route", "GET", "/v2/x", "", 404, "openapi.json"},
			{"no method", "PATCH", "/v1/services", `{}`, 405, "PATCH"},
			{"no node yet", "POST", "/v1/services", `{"name":"g","task":{"generic":{"kind":"null"}}}`, 400, "spec.task.generic.kind"},
			{"tasks", "GET", "/v1/tasks?states=RUNNING&services=web", "", 200, `{"tasks":[]}`},
			{"bad enum", "GET", "/v1/tasks?states=WALKING", "", 400, "WALKING"},
			{"nodes", "GET", "/v1/nodes", "", 200, `{"nodes":[]}`},
			{"plugins", "GET", "/v1/plugins", "", 200, `{"plugins":[]}`},
			{"cluster", "GET", "/v1/cluster", "", 200, `"services":"1"`},
			{"remove", "DELETE", "/v1/services/web", "", 200, "{}"},
			{"remove again", "DELETE", "/v1/services/web", "", 404, "web"},
			{"health", "GET", "/healthz", "", 200, "ok"},
			{"document", "GET", "/openapi.json", "", 200, "/v1/services/{service}"},
		}
		for _, s := range steps {
			if got := a.rest(s.method, s.path, s.body); got.code != s.code || !strings.Contains(got.body, s.want) {
				t.Errorf("%s: %d %.300s, want %d and %q", s.name, got.code, got.body, s.code, s.want)
			}
		}
	})
}

// A page of another site in a user's browser, where there may be a client
// certificate or a local `muster dev`.
func TestRESTRefusesOtherSites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		post := func(header, value string) int {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), "POST", restURL+"/v1/services/web:scale", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(header, value)
			resp, err := a.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			return resp.StatusCode
		}
		if got := post("Origin", "https://elsewhere.example"); got != http.StatusForbidden {
			t.Errorf("of another origin: %d", got)
		}
		if got := post("Sec-Fetch-Site", "cross-site"); got != http.StatusForbidden {
			t.Errorf("of another site: %d", got)
		}
		if got := post("Sec-Fetch-Site", "same-origin"); got != http.StatusNotFound {
			t.Errorf("of its own: %d", got)
		}
	})
}

func TestRESTNamesEveryFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		method, path, body string
		code               int
		want               []string
	}{
		"unknown fields": {"POST", "/v1/services", `{"nme":"web","task":{"container":{"imag":"nginx","mounts":[{"typ":1}]}}}`, 400,
			[]string{"spec.nme", "spec.task.container.imag", "spec.task.container.mounts[0].typ"}},
		"types": {"POST", "/v1/services", `{"name":7,"labels":{"a":1},"replicated":{"replicas":-1},"task":{"container":{"image":[],"tty":"x","env":"A=b","stopGracePeriod":"1s"}},"update":{"order":"SIDEWAYS"}}`, 400,
			[]string{"spec.labels[\"a\"]", "spec.name", "spec.replicated.replicas", "spec.task.container.env", "spec.task.container.image", "spec.task.container.tty", "spec.update.order"}},
		"negative as text": {"POST", "/v1/services", `{"replicated":{"replicas":"-3"}}`, 400, []string{"spec.replicated.replicas"}},
		"not whole":        {"POST", "/v1/services", `{"replicated":{"replicas":1.5}}`, 400, []string{"spec.replicated.replicas"}},
		"two modes":        {"POST", "/v1/services", `{"replicated":{},"global":{}}`, 400, []string{"spec"}},
		"twice":            {"POST", "/v1/services", `{"name":"a","name":"b"}`, 400, []string{"spec"}},
		"validation":       {"POST", "/v1/services", `{"name":"-","task":{"container":{"image":"A B"}}}`, 400, []string{"spec.name", "spec.task.container.image"}},
		"no body":          {"POST", "/v1/services", ``, 400, []string{"spec.task"}},
		"not JSON":         {"POST", "/v1/services", `{"name":`, 400, []string{"spec"}},
		"list":             {"POST", "/v1/services", `[]`, 400, []string{"spec"}},
		"two bodies":       {"POST", "/v1/services", `{} {}`, 400, []string{"spec"}},
		"deep":             {"POST", "/v1/services", strings.Repeat(`[`, 20_000), 400, []string{"spec"}},
		"query":            {"GET", "/v1/services?name=web&pagesize=1", ``, 400, []string{"name", "pagesize"}},
		"query of a body":  {"PUT", "/v1/services/web?version=1&spec.name=a", `{}`, 400, []string{"spec.name"}},
		"watch query":      {"GET", "/v1/watch?kind=TASK", ``, 400, []string{"kind"}},
		"logs query":       {"GET", "/v1/services/web/logs?follow=true", ``, 400, []string{"follow"}},
		"verb body":        {"POST", "/v1/services/web:scale", `{"replica":1}`, 400, []string{"replica"}},
		"large":            {"POST", "/v1/services", `{"name":"` + strings.Repeat("a", 3<<20) + `"}`, 413, nil},
		"large spec":       {"POST", "/v1/services", `{"name":"web","task":{"container":{"image":"nginx","args":["` + strings.Repeat("a", 600<<10) + `"]}}}`, 400, []string{"spec.task"}},
	}
	for name, test := range tests {
		subtest(t, name, func(t *testing.T) {
			a := newCluster(t).apid()
			got := a.rest(test.method, test.path, test.body)
			if got.code != test.code || got.json["message"] == "" || got.json["code"] == nil {
				t.Fatalf("%d %.500s, want %d", got.code, got.body, test.code)
			}
			if d := cmp.Diff(test.want, got.fields()); d != "" {
				t.Errorf("fields (-want +got):\n%s\n%.500s", d, got.body)
			}
			if got := a.rest("GET", "/v1/services", ""); len(got.json["services"].([]any)) != 0 {
				t.Errorf("a refused request changed something: %s", got.body)
			}
		})
	}
}

func TestRESTRefusesForms(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		resp, err := newCluster(t).apid().http.Post(restURL+"/v1/services", "application/x-www-form-urlencoded", strings.NewReader(webJSON))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("a form: %d", resp.StatusCode)
		}
	})
}

// What was read can be sent back as it is.
func TestRESTRoundTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		created := a.rest("POST", "/v1/services", `{"name":"web","labels":{"a":""},"replicated":{"replicas":0},"task":{"container":{"image":"nginx","pullOptions":{"registryAuth":"eA=="}},"restart":{}}}`)
		spec, err := json.Marshal(created.json["spec"])
		if err != nil {
			t.Fatal(err)
		}
		version := func(r answer) string { return fmt.Sprint(r.json["meta"].(map[string]any)["version"]) }
		back := a.rest("PUT", "/v1/services/web?version="+version(created), string(spec))
		if back.code != 200 || version(back) != version(created) {
			t.Errorf("sent back: %d %s", back.code, back.body)
		}
	})
}

// Who calls too often learns in what time to try again.
func TestRESTRefusesTooManyCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits, err := limit.New(limit.Settings{ClientRate: 0.01, ClientBurst: 3, UnauthenticatedBurst: 1}, false, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		a := newCluster(t).apid(func(cfg *apid.Config) { cfg.Limits = limits })
		for range 2 {
			if got := a.rest("GET", "/v1/services", ""); got.code != 200 {
				t.Errorf("%d %s", got.code, got.body)
			}
		}
		// A stream counts as a call.
		if resp, _ := a.stream("/v1/watch", "", ""); resp.StatusCode != 200 {
			t.Errorf("watch: %d", resp.StatusCode)
		}
		for _, path := range []string{"/v1/services", "/v1/watch"} {
			resp, lines := a.stream(path, "", "")
			again, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if lines.Scan(); resp.StatusCode != 429 || err != nil || again < 1 || again > 100 || !strings.Contains(lines.Text(), "--client-rate") {
				t.Errorf("%s: %d, again after %q: %s", path, resp.StatusCode, resp.Header.Get("Retry-After"), lines.Text())
			}
		}
	})
}

// stream opens a REST stream and returns its lines.
func (a *api) stream(path, accept, last string) (*http.Response, *bufio.Scanner) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	a.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, restURL+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 8<<20)
	return resp, lines
}

func TestRESTWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		resp, lines := a.stream("/v1/watch?kinds=SERVICE&includeOld=true", "", "")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Fatalf("%d %s", resp.StatusCode, resp.Header)
		}
		read := func() map[string]any {
			t.Helper()
			if !lines.Scan() {
				t.Fatalf("stream ended: %v", lines.Err())
			}
			var m struct{ Result map[string]any }
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				t.Fatalf("%v in %s", err, lines.Text())
			}
			return m.Result
		}
		token, _ := read()["resumeToken"].(string)
		s := a.create(webSpec("web"))
		if m := fmt.Sprint(read()); !strings.Contains(m, "CREATE") || !strings.Contains(m, s.Id) {
			t.Errorf("event: %s", m)
		}

		resp, lines = a.stream("/v1/watch", "text/event-stream", token)
		if resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%d %s", resp.StatusCode, resp.Header)
		}
		var got []string
		for len(got) < 6 && lines.Scan() {
			got = append(got, lines.Text())
		}
		if !strings.HasPrefix(got[0], "id: ") || !strings.HasPrefix(got[1], "data: {") || got[2] != "" ||
			got[3] == got[0] || !strings.Contains(got[4], s.Id) {
			t.Errorf("events:\n%s", strings.Join(got, "\n"))
		}

		resp, lines = a.stream("/v1/watch?resumeToken=x", "text/event-stream", "")
		if lines.Scan(); resp.StatusCode != 400 || !strings.Contains(lines.Text(), "resumeToken") {
			t.Errorf("%d %s", resp.StatusCode, lines.Text())
		}

		// An error in the middle of a stream is its last line.
		_, lines = a.stream("/v1/watch", "", "")
		lines.Scan()
		a.stop()
		for lines.Scan() {
			got = append(got, lines.Text())
		}
		if end := got[len(got)-1]; !strings.HasPrefix(end, `{"error":`) || !strings.Contains(end, "stopping") {
			t.Errorf("the end: %s", end)
		}
	})
}

func TestRESTLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		c.dispatcher(&broker{lines: 2, away: map[string]bool{"n9": true}})
		s := a.create(webSpec("web"))
		id := c.task(s, 1, nil)
		c.assign(s, 1, id, "n1", runningStatus())
		gone := c.task(s, 2, nil)
		c.assign(s, 2, gone, "n9", runningStatus())
		settled(t, "tasks run", func() bool { return a.get("web").Status.RunningTasks == 2 })
		text := func(path, accept string) string {
			resp, _ := a.stream(path, accept, "")
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		prefix := "web.1." + id[:min(len(id), 12)] + "@n1 | "
		settled(t, "logs come", func() bool { return strings.Contains(text("/v1/tasks/"+id+"/logs", "text/plain"), "line 1") })
		if got := text("/v1/tasks/"+id+"/logs", "text/plain"); got != prefix+"line 0\n"+prefix+"line 1\n" {
			t.Errorf("text: %q", got)
		}
		if got := text("/v1/services/web/logs?options.tail=5&options.streams=STDOUT", "text/plain"); !strings.Contains(got, "warning: logs of 1 task(s) on node n9 are missing: not connected") {
			t.Errorf("text: %q", got)
		}
		var line struct {
			Result struct{ Message musterv1.LogMessage }
		}
		first, _, _ := strings.Cut(text("/v1/tasks/"+id+"/logs", "*/*"), "\n")
		if !strings.Contains(first, `"serviceId":"`+s.Id+`"`) || !strings.Contains(first, `"data":"bGluZSAw"`) {
			t.Errorf("JSON: %s (%v)", first, &line)
		}
		if resp, _ := a.stream("/v1/services/nope/logs", "text/plain", ""); resp.StatusCode != 404 {
			t.Errorf("unknown service: %d", resp.StatusCode)
		}
	})
}

// Every route of the contract is there and none answers with an internal
// error.
func TestEveryRouteOfTheDocumentAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		doc := a.rest("GET", "/openapi.json", "")
		paths, _ := doc.json["paths"].(map[string]any)
		if len(paths) < 20 {
			t.Fatalf("%d paths", len(paths))
		}
		for path, methods := range paths {
			if !strings.HasPrefix(path, "/v1/") || path == "/v1/watch" {
				continue
			}
			at := path
			for _, p := range []string{"service", "task", "node", "network", "secret", "config", "volume"} {
				at = strings.ReplaceAll(at, "{"+p+"}", "x")
			}
			for method := range methods.(map[string]any) {
				body := ""
				if method == "post" || method == "put" {
					body = "{}"
				}
				got := a.rest(strings.ToUpper(method), at, body)
				if !slices.Contains([]int{200, 400, 404}, got.code) {
					t.Errorf("%s %s: %d %s", method, at, got.code, got.body)
				}
			}
		}
	})
}

func FuzzRESTBody(f *testing.F) {
	c := newCluster(f)
	a := c.apid()
	f.Add("POST", "/v1/services", webJSON)
	f.Add("PUT", "/v1/services/web?version=1", `{"name":"web","task":{"generic":{"kind":"null","payload":{"a":[1,null,{"b":1e300}]}}}}`)
	f.Add("POST", "/v1/services/web:scale", `{"replicas":"5"}`)
	f.Add("PUT", "/v1/cluster", `{"dispatcher":{"heartbeatPeriod":"1.5s"},"labels":{"":null}}`)
	f.Add("PUT", "/v1/nodes/n1?version=0", `{"availability":3}`)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		if method != "POST" && method != "PUT" || !strings.HasPrefix(path, "/v1/") || strings.ContainsAny(path, " #\n\r\t") {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), method, restURL+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := a.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= 500 && resp.StatusCode != 501 {
			t.Errorf("%s %s %q: %d %s", method, path, body, resp.StatusCode, b)
		}
	})
}

// One client has so many log streams and watches open over REST, and is told which
// bound the next one exceeds. What has ended makes room.
func TestRESTBoundsStreamsOfOneClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits, err := limit.New(limit.Settings{ClientBurst: 1, UnauthenticatedBurst: 1, ClientWatches: 2, ClientLogs: 2}, false, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		a := newCluster(t).apid(func(cfg *apid.Config) { cfg.Limits = limits })
		a.create(webSpec("web"))
		for path, flag := range map[string]string{"/v1/services/web/logs?options.follow=true": "--client-logs", "/v1/watch": "--client-watches"} {
			var open []*http.Response
			for range 2 {
				resp, _ := a.stream(path, "", "")
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s: %d", path, resp.StatusCode)
				}
				open = append(open, resp)
			}
			resp, lines := a.stream(path, "", "")
			if lines.Scan(); resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(lines.Text(), "127.0.0.1 has 2 ") || !strings.Contains(lines.Text(), flag) {
				t.Errorf("%s: %d %s", path, resp.StatusCode, lines.Text())
			}
			_ = open[0].Body.Close()
			settled(t, "a stream that has ended makes room", func() bool {
				resp, _ := a.stream(path, "", "")
				return resp.StatusCode == http.StatusOK
			})
		}
		// Other calls are not streams.
		if got := a.rest("GET", "/v1/services", ""); got.code != http.StatusOK {
			t.Errorf("%d %s", got.code, got.body)
		}
	})
}
