package apid_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"unicode"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// raw sends a request whose path is written as it is, which http.Client does not.
func (a *api) raw(method, path string, header ...string) *http.Response {
	a.t.Helper()
	conn, err := a.web.dial(a.t.Context(), "", "")
	if err != nil {
		a.t.Fatal(err)
	}
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: apid.test", "Connection: close"}, header...)
	var writing sync.WaitGroup
	// The server may answer before it has read all, and then stops reading.
	writing.Go(func() { _, _ = io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n") })
	a.t.Cleanup(func() {
		_ = conn.Close()
		writing.Wait()
	})
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		a.t.Fatalf("%s %.100s: %v", method, path, err)
	}
	return resp
}

// No path but the one that the contract has for a service reaches it.
func TestDisguisedPathsReachNoService(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		path string
		// to is where the client is sent.
		code int
		to   string
	}{
		"dots":                       {"/v1/services/../nodes", 301, "/v1/nodes"},
		"encoded dots":               {"/v1/services/%2e%2e/nodes", 404, ""},
		"dots encoded twice":         {"/v1/services/%252e%252e", 404, ""},
		"dots within a segment":      {"/v1/services/..%2fweb", 404, ""},
		"an encoded slash":           {"/v1/services/x%2fweb", 404, ""},
		"an encoded slash at an end": {"/v1/services/web%2f", 404, ""},
		"an encoded slash of ours":   {"/v1%2fservices%2fweb", 404, ""},
		"two slashes":                {"/v1//services/web", 301, "/v1/services/web"},
		"a slash at the end":         {"/v1/services/web/", 404, ""},
		"another host":               {"//elsewhere.example/v1/services/web", 301, "/elsewhere.example/v1/services/web"},
		"another host with dots":     {"/v1/..//elsewhere.example", 301, "/elsewhere.example"},
		"backslashes":                {`/v1/services\web`, 404, ""},
		"NUL":                        {"/v1/services/web%00", 404, ""},
		"a new line":                 {"/v1/services/web%0d%0aSet-Cookie:%20a=b", 404, ""},
		"an escape":                  {"/v1/services/%1b[31mweb", 404, ""},
		"no UTF-8":                   {"/v1/services/web%ff", 404, ""},
		"half an escape":             {"/v1/services/web%2", 400, ""},
		"wide letters":               {"/v1/services/%EF%BD%97%EF%BD%85%EF%BD%82", 404, ""},
		"a letter of another script": {"/v1/services/w%D0%B5b", 404, ""},
		"a sign of no width":         {"/v1/services/we%E2%80%8Bb", 404, ""},
		"writing from right to left": {"/v1/services/%E2%80%AEbew", 404, ""},
		"a dotless i":                {"/v1/services/w%C4%B1b", 404, ""},
		"a verb that is none":        {"/v1/services/web:destroy", 404, ""},
		"a pattern":                  {"/v1/services/%7Bservice%7D", 404, ""},
		"a star":                     {"/v1/services/*", 404, ""},
		"nothing":                    {"/v1/services/", 400, ""},
		"a name that is too long":    {"/v1/services/" + strings.Repeat("a", 40_000), 404, ""},
		"many segments":              {"/v1/services" + strings.Repeat("/a", 20_000), 404, ""},
		"too long for a header":      {"/v1/services/" + strings.Repeat("a", 2<<20), 431, ""},
		"a colon":                    {"/v1/services/web%3Ascale", 404, ""},
	}
	for name, tt := range tests {
		subtest(t, name, func(t *testing.T) {
			a := newCluster(t).apid()
			for _, name := range []string{"web", "nodes"} {
				a.create(webSpec(name))
			}
			for _, method := range []string{"GET", "DELETE"} {
				resp := a.raw(method, tt.path)
				body, err := io.ReadAll(resp.Body)
				// The server may end a request that is too long while it is still sent.
				if err != nil && tt.code != 431 {
					t.Fatal(err)
				}
				code := resp.StatusCode
				if code == http.StatusTemporaryRedirect || code == http.StatusPermanentRedirect {
					code = http.StatusMovedPermanently
				}
				// There is nothing to delete in a collection.
				if code == http.StatusMethodNotAllowed && method == "DELETE" {
					code = http.StatusNotFound
				}
				if to := resp.Header.Get("Location"); code != tt.code || to != tt.to {
					t.Errorf("%s: status %d to %q, want %d to %q: %.300s", method, resp.StatusCode, to, tt.code, tt.to, body)
				}
				if resp.Header.Get("Set-Cookie") != "" || strings.ContainsFunc(strings.TrimSuffix(string(body), "\n"), unicode.IsControl) && tt.code == 404 {
					t.Errorf("%s: the answer has what the path smuggled in: %v %q", method, resp.Header, body)
				}
				if len(body) > 2000 {
					t.Errorf("%s: the answer has %d bytes", method, len(body))
				}
			}
			if got := a.rest("GET", "/v1/services", ""); len(got.json["services"].([]any)) != 2 {
				t.Errorf("afterwards there are other services: %s", got.body)
			}
		})
	}
}

// Hostile JSON is refused with an error that is short, names the field where there is
// one, and changes nothing.
func TestHostileJSONIsRefused(t *testing.T) {
	t.Parallel()
	spec := func(rest string) string { return `{"name":"web",` + rest + `}` }
	payload := func(value string) string {
		return spec(`"task":{"generic":{"kind":"null","payload":{"a":` + value + `}}}`)
	}
	container := func(field string) string {
		return spec(`"task":{"container":{"image":"nginx",` + field + `}}`)
	}
	const create, scale = "POST /v1/services", "POST /v1/services/web:scale"
	tests := map[string]struct {
		call, body string
		want       []string
	}{
		"deep lists in a payload":    {create, payload(strings.Repeat("[", 9000) + strings.Repeat("]", 9000)), []string{"spec.task.generic.payload"}},
		"deep objects in a payload":  {create, payload(strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)), []string{"spec.task.generic.payload"}},
		"deeper than anybody reads":  {create, payload(strings.Repeat("[", 300_000) + strings.Repeat("]", 300_000)), []string{"spec"}},
		"deep in a field of none":    {create, spec(`"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000)), []string{"spec.x"}},
		"a number out of all bounds": {create, payload("1e999"), []string{"spec"}},
		"a number of many digits":    {create, spec(`"replicated":{"replicas":` + strings.Repeat("9", 100_000) + `}`), []string{"spec.replicated.replicas"}},
		"a number that is too large": {create, spec(`"replicated":{"replicas":18446744073709551616}`), []string{"spec.replicated.replicas"}},
		"an exponent":                {scale, `{"replicas":1e400}`, []string{"replicas"}},
		"an exponent as text":        {scale, `{"replicas":"1e400"}`, []string{"replicas"}},
		"no number":                  {scale, `{"replicas":"NaN"}`, []string{"replicas"}},
		"hexadecimal":                {scale, `{"replicas":"0x10"}`, []string{"replicas"}},
		"twice in depth":             {create, container(`"args":["a"],"args":["b"]`), []string{"spec"}},
		"twice in two spellings":     {create, container(`"stopGracePeriod":"1s","stop_grace_period":"2s"`), []string{"spec"}},
		"twice in a map":             {create, spec(`"labels":{"a":"1","a":"2"}`), []string{"spec"}},
		"twice in a payload":         {create, payload(`{"b":1,"b":2}`), []string{"spec"}},
		"twice, once escaped":        {create, `{"name":"a","n\u0061me":"b"}`, []string{"spec"}},
		"no UTF-8":                   {create, "{\"name\":\"w\xffb\"}", []string{"spec"}},
		"half a letter":              {create, `{"name":"w\ud800b"}`, []string{"spec"}},
		"NUL":                        {create, spec(`"labels":{"a\u0000":"b"},"task":{"container":{"image":"n\u0000"}}`), []string{"spec.task.container.image"}},
		"control characters":         {create, `{"name":"web\n\u001b[31m","task":{"container":{"image":"nginx"}}}`, []string{"spec.name"}},
		"control characters as name": {create, `{"na\nme\u001b[31m":1}`, []string{"spec.na\nme\x1b[31m"}},
		"of another script":          {create, `{"name":"wеb","task":{"container":{"image":"nginx"}}}`, []string{"spec.name"}},
		"a type of Google's":         {create, spec(`"@type":"type.googleapis.com/google.protobuf.Any"`), []string{"spec.@type"}},
		"a list where one is meant":  {create, container(`"stopGracePeriod":["1s"]`), []string{"spec.task.container.stopGracePeriod"}},
		"an object as enum":          {create, spec(`"update":{"order":{}}`), []string{"spec.update.order"}},
		"a ratio that is none":       {create, spec(`"update":{"maxFailureRatio":[]}`), []string{"spec.update.maxFailureRatio"}},
		"bytes that are none":        {create, container(`"pullOptions":{"registryAuth":7}`), []string{"spec.task.container.pullOptions.registryAuth"}},
		"an enum of no number":       {create, spec(`"update":{"order":1e10}`), []string{"spec.update.order"}},
		"a name of a field too long": {create, `{"` + strings.Repeat("x", 100_000) + `":1}`, nil},
		"many fields of none":        {create, `{` + strings.Repeat(`"x":1,`, 50_000) + `"y":1}`, []string{"spec.x", "spec.y"}},
		"many labels":                {create, spec(`"labels":{` + numbered(50_000, `"a%d":"b"`) + `}`), nil},
		"many arguments":             {create, container(`"args":[` + numbered(100_000, `"%d"`) + `]`), nil},
	}
	for name, tt := range tests {
		subtest(t, name, func(t *testing.T) {
			c := newCluster(t)
			a := c.apid()
			c.node("n1", "host", &musterv1.ExecutorDescription{Name: "null", Kinds: []string{"null"}})
			method, path, _ := strings.Cut(tt.call, " ")
			got := a.rest(method, path, tt.body)
			if got.code != 400 || len(got.body) > 5000 {
				t.Errorf("status %d with %d bytes, want 400 with few: %.500s", got.code, len(got.body), got.body)
			}
			if tt.want != nil && !slices.Equal(got.fields(), tt.want) {
				t.Errorf("it names %q, want %q: %.500s", got.fields(), tt.want, got.body)
			}
			if strings.ContainsFunc(strings.TrimSuffix(got.body, "\n"), unicode.IsControl) {
				t.Errorf("control characters in %q", got.body)
			}
			if got := a.rest("GET", "/v1/services", ""); len(got.json["services"].([]any)) != 0 {
				t.Errorf("a refused request changed something: %s", got.body)
			}
		})
	}
}

func numbered(n int, format string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(all, ",")
}

func TestCompressedBodiesAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		for _, encoding := range []string{"gzip", "GZIP", "deflate", "identity, gzip"} {
			resp := a.raw("POST", "/v1/services", "Content-Type: application/json", "Content-Encoding: "+encoding, "Content-Length: 4\r\n\r\n{}  ")
			if resp.StatusCode != http.StatusUnsupportedMediaType {
				t.Errorf("%s: status %d", encoding, resp.StatusCode)
			}
		}
	})
}

func TestFiltersWithMoreThanAThousandValuesAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		many := slices.Repeat([]string{"a"}, 1001)
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{Names: many, Labels: many})
		wantCode(t, err, codes.InvalidArgument, "names", "labels")
		_, err = a.ListTasks(t.Context(), &musterv1.ListTasksRequest{States: make([]musterv1.TaskState, 1001)})
		wantCode(t, err, codes.InvalidArgument, "states")
		_, err = a.ListNodes(t.Context(), &musterv1.ListNodesRequest{IdPrefixes: many})
		wantCode(t, err, codes.InvalidArgument, "idPrefixes")
		_, err = a.ListPlugins(t.Context(), &musterv1.ListPluginsRequest{Nodes: many})
		wantCode(t, err, codes.InvalidArgument, "nodes")
		watch, err := a.Watch(t.Context(), &musterv1.WatchRequest{Services: many})
		if err == nil {
			_, err = watch.Recv()
		}
		wantCode(t, err, codes.InvalidArgument, "services")
		s := a.create(webSpec("web"))
		logs, err := a.ServiceLogs(t.Context(), &musterv1.ServiceLogsRequest{Service: s.Id, Options: &musterv1.LogOptions{Streams: slices.Repeat([]musterv1.LogStream{musterv1.LogStream_STDOUT}, 1001)}})
		if err == nil {
			_, err = logs.Recv()
		}
		wantCode(t, err, codes.InvalidArgument, "options.streams")
		if _, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{Names: many[:1000]}); err != nil {
			t.Error(err)
		}
	})
}
