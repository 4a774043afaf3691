package rest

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/musterhq/muster/apid/validate"
)

// FuzzCheckBody: what protobuf's own decoder takes for a request, the checker does
// too, and what it does not take the checker refuses, with an error that is short.
func FuzzCheckBody(f *testing.F) {
	all, err := contractRoutes()
	if err != nil {
		f.Fatal(err)
	}
	var messages []protoreflect.MessageDescriptor
	for _, name := range []string{"POST /v1/services", "POST /v1/services/{service=*}:scale", "PUT /v1/nodes/{node=*}", "PUT /v1/cluster", "POST /v1/tokens"} {
		r, ok := all[name]
		if !ok {
			f.Fatalf("there is no route %s", name)
		}
		m := r.request
		if r.body != "*" {
			m = m.Fields().ByName(protoreflect.Name(r.body)).Message()
		}
		messages = append(messages, m)
	}
	for _, body := range []string{
		`{"name":"web","replicated":{"replicas":3},"task":{"container":{"image":"nginx","env":["A=b"],"stopGracePeriod":"1.5s"}}}`,
		`{"task":{"generic":{"kind":"null","payload":{"a":[1,null,{"b":1e300}]}}},"labels":{"a":"b"},"update":{"order":"START_FIRST","maxFailureRatio":0.5,"parallelism":1e1}}`,
		`{"replicas":"5"}`, `{"replicas":5.0}`, `{"replicas":1e3}`, `{"replicas":-1}`, `{"replicas":1.5}`, `{"replicas":18446744073709551615}`, `{"replicas":18446744073709551616}`,
		`{"availability":3}`, `{"availability":"DRAIN"}`, `{"expiresAt":"2030-01-01T00:00:00Z"}`, `{"name":null}`, `{"name":"\ud800"}`, `{"a":1,"a":2}`, `[]`, `{} {}`, `{`,
	} {
		for i := range messages {
			f.Add(uint8(i), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		m := messages[int(which)%len(messages)]
		var report validate.Report
		checkBody(&report, m, "", body)
		refused, taken := report.Err(), protojson.Unmarshal(body, dynamicpb.NewMessage(m))
		// Of nothing but null protobuf makes an empty message, and of text that is no
		// UTF-8 the checker may say so in its own way.
		if taken == nil && refused != nil && strings.TrimSpace(string(body)) != "null" {
			t.Errorf("%s of %q is refused, and good: %v", m.Name(), body, refused)
		}
		if taken != nil && refused == nil {
			t.Errorf("%s of %q is taken, and is none: %v", m.Name(), body, taken)
		}
		if refused != nil && (len(refused.Error()) > 100_000 || !utf8.ValidString(refused.Error())) {
			t.Errorf("the error of %q: %.500q", body, refused)
		}
	})
}
