package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// longestAnswer is how long an error may be, whatever was sent: it is for people
// to read.
const longestAnswer = 2000

// TestBadInput: what is wrong is refused with an error that names it, by the
// command line and by REST, and changes nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	s.ok(t, "service", "create", "--name", "taken", "--kind", "null", "--timeout", "2m")
	taken := s.awaitRunning(t, "taken", 1)
	long := strings.Repeat("n", 10_000)

	t.Run("command line", func(t *testing.T) {
		file := func(name string, spec any) string {
			raw, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		for name, tt := range map[string]struct {
			args []string
			code int
			says []string
		}{
			"unknown executor":   {[]string{"service", "create", "--name", "x", "--kind", "wasm", "--payload", "{}"}, 2, []string{"--kind: ", "wasm"}},
			"unknown field":      {[]string{"service", "create", "--file", file("field.json", map[string]any{"name": "x", "replicass": 3})}, 2, []string{"replicass"}},
			"unknown payload":    {[]string{"service", "create", "--name", "x", "--kind", "process", "--payload", `{"shell": "true", "colour": "red"}`}, 2, []string{"--payload: colour", "colour"}},
			"malformed image":    {[]string{"service", "create", "--name", "x", "Not/An:Image:At all"}, 2, []string{"IMAGE Not/An:Image:At all: "}},
			"negative replicas":  {[]string{"service", "create", "--name", "x", "--replicas", "-1", "--kind", "null"}, 2, []string{"replicas", "-1"}},
			"negative scale":     {[]string{"service", "scale", "taken=-1"}, 2, []string{"taken=-1"}},
			"duplicate name":     {[]string{"service", "create", "--name", "TAKEN", "--kind", "null"}, 4, []string{"\"taken\" already exists"}},
			"oversized spec":     {[]string{"service", "create", "--file", file("large.json", oversized("x", 600<<10))}, 2, []string{"large.json:1: task: ", "bytes"}},
			"long name":          {[]string{"service", "create", "--name", long, "--kind", "null"}, 2, []string{"--name: ", "10000 characters"}},
			"long name to find":  {[]string{"service", "inspect", long}, 3, []string{"there is no"}},
			"long node to find":  {[]string{"node", "inspect", long}, 3, []string{"there is no"}},
			"nothing to find":    {[]string{"service", "inspect", "unknown"}, 3, []string{"unknown"}},
			"unknown flag":       {[]string{"service", "create", "--nmae", "x"}, 2, []string{"--nmae"}},
			"unknown command":    {[]string{"service", "destroy"}, 2, []string{"destroy"}},
			"no cluster":         {[]string{"service", "ls", "--address", "127.0.0.1:1"}, 5, []string{"127.0.0.1:1", "MUSTER_ADDRESS"}},
			"not yet supported":  {[]string{"service", "create", "--name", "x", "--network", "net", "--kind", "null"}, 2, []string{"--network: "}},
			"unknown constraint": {[]string{"service", "create", "--name", "x", "--constraint", "disk", "--kind", "null"}, 2, []string{"--constraint: "}},
		} {
			t.Run(name, func(t *testing.T) {
				got := s.muster(t, tt.args...)
				if got.code != tt.code || got.out != "" {
					t.Errorf("%.500s\nwant exit code %d and nothing on standard output", got, tt.code)
				}
				if len(got.errs) > longestAnswer {
					t.Errorf("the error has %d characters", len(got.errs))
				}
				for _, want := range tt.says {
					if !strings.Contains(got.errs, want) {
						t.Errorf("%.500s\nwant it to name %s", got, want)
					}
				}
			})
		}
	})

	t.Run("REST", func(t *testing.T) {
		null := func(name string) map[string]any {
			return map[string]any{"name": name, "task": map[string]any{"generic": map[string]any{"kind": "null"}}}
		}
		with := func(key string, value any) map[string]any {
			spec := null("x")
			spec[key] = value
			return spec
		}
		container := func(image string) map[string]any {
			return map[string]any{"name": "x", "task": map[string]any{"container": map[string]any{"image": image}}}
		}
		generic := func(kind string, payload map[string]any) map[string]any {
			return map[string]any{"name": "x", "task": map[string]any{"generic": map[string]any{"kind": kind, "payload": payload}}}
		}
		for name, tt := range map[string]struct {
			method, path string
			body         any
			code         int
			says         []string
		}{
			"unknown executor":      {http.MethodPost, "/v1/services", generic("wasm", nil), 400, []string{"spec.task.generic.kind"}},
			"unknown field":         {http.MethodPost, "/v1/services", with("replicass", 3), 400, []string{"spec.replicass"}},
			"unknown payload":       {http.MethodPost, "/v1/services", generic("process", map[string]any{"shell": "true", "colour": 1}), 400, []string{"spec.task.generic.payload", "colour"}},
			"malformed image":       {http.MethodPost, "/v1/services", container("Not/An:Image:At all"), 400, []string{"spec.task.container.image"}},
			"negative replicas":     {http.MethodPost, "/v1/services", with("replicated", map[string]any{"replicas": -3}), 400, []string{"spec.replicated.replicas"}},
			"too many replicas":     {http.MethodPost, "/v1/services", with("replicated", map[string]any{"replicas": "18446744073709551615"}), 400, []string{"spec.replicated.replicas"}},
			"negative scale":        {http.MethodPost, "/v1/services/taken:scale", map[string]any{"replicas": -1}, 400, []string{"replicas"}},
			"duplicate name":        {http.MethodPost, "/v1/services", null("Taken"), 409, []string{`\"taken\" already exists`}},
			"oversized spec":        {http.MethodPost, "/v1/services", oversized("x", 600<<10), 400, []string{"spec.task", "bytes"}},
			"oversized body":        {http.MethodPost, "/v1/services", oversized("x", 3<<20), 413, []string{"bytes"}},
			"oversized labels":      {http.MethodPost, "/v1/services", with("labels", map[string]any{"a": strings.Repeat("x", 600<<10)}), 400, []string{"spec.labels"}},
			"long name":             {http.MethodPost, "/v1/services", null(long), 400, []string{"spec.name"}},
			"long name to find":     {http.MethodGet, "/v1/services/" + long, nil, 404, nil},
			"long name to remove":   {http.MethodDelete, "/v1/services/" + long, nil, 404, nil},
			"no JSON":               {http.MethodPost, "/v1/services", "{", 400, nil},
			"a list":                {http.MethodPost, "/v1/services", "[]", 400, nil},
			"nothing":               {http.MethodPost, "/v1/services", "{}", 400, []string{"spec.task"}},
			"unknown path":          {http.MethodGet, "/v1/serviecs", nil, 404, []string{"openapi.json"}},
			"unknown parameter":     {http.MethodGet, "/v1/services?nmaes=x", nil, 400, []string{"nmaes"}},
			"several things":        {http.MethodPost, "/v1/services", map[string]any{"name": "-", "replicated": map[string]any{"replicas": -1}, "task": map[string]any{"container": map[string]any{"image": "A"}}}, 400, []string{"spec.replicated.replicas"}},
			"stale version":         {http.MethodPut, "/v1/services/taken?version=999", null("taken"), 409, nil},
			"what is not there yet": {http.MethodPost, "/v1/services", map[string]any{"name": "x", "globalJob": map[string]any{}, "task": map[string]any{"container": map[string]any{"image": "x"}}}, 501, nil},
		} {
			t.Run(name, func(t *testing.T) {
				code, answer := s.rest(t, tt.method, tt.path, tt.body)
				raw, err := json.Marshal(answer)
				if err != nil {
					t.Fatal(err)
				}
				if code != tt.code {
					t.Errorf("%d %.500s\nwant %d", code, raw, tt.code)
				}
				if len(raw) > longestAnswer {
					t.Errorf("the answer has %d characters", len(raw))
				}
				for _, want := range append(tt.says, `"message"`, `"code"`) {
					if !strings.Contains(string(raw), want) {
						t.Errorf("%d %.500s\nwant it to name %s", code, raw, want)
					}
				}
			})
		}
	})

	if list := s.ok(t, "service", "ls", "--format", "{{.spec.name}}"); list != "taken\n" {
		t.Errorf("afterwards there are services %q, want the one from before", list)
	}
	s.sameNullRuns(t, taken, s.awaitRunning(t, "taken", 1))
	s.ok(t, "service", "rm", "taken")
	s.awaitNoTasks(t)
}

// oversized is a spec of some size.
func oversized(name string, size int) map[string]any {
	return map[string]any{"name": name, "task": map[string]any{"generic": map[string]any{
		"kind": "process", "payload": map[string]any{"shell": "true " + strings.Repeat("x", size)},
	}}}
}

// sameNullRuns fails the test unless the same tasks run as before. Tasks of the
// null executor are no processes.
func (s *site) sameNullRuns(t *testing.T, before, after tasks) {
	t.Helper()
	for id, b := range before {
		if a := after[id]; a == nil || fmt.Sprint(a.Status.Timestamp) != fmt.Sprint(b.Status.Timestamp) {
			t.Errorf("task %s does not run as it did: %v", b.Name, a)
		}
	}
}
