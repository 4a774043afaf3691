package rest

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/musterhq/muster/apid/validate"
)

// A body is refused if and only if protobuf's decoder refuses it for the message, with an
// error that is short. The reference decoder knows the message by its descriptor only.
func FuzzDecodeBody(f *testing.F) {
	all, err := contractRoutes()
	if err != nil {
		f.Fatal(err)
	}
	var messages []protoreflect.MessageType
	for _, name := range []string{"POST /v1/services", "POST /v1/services/{service=*}:scale", "PUT /v1/nodes/{node=*}", "PUT /v1/cluster", "POST /v1/tokens"} {
		r, ok := all[name]
		if !ok {
			f.Fatalf("there is no route %s", name)
		}
		messages = append(messages, r.bodyType)
	}
	for _, body := range []string{
		`{"name":"web","replicated":{"replicas":3},"task":{"container":{"image":"nginx","env":["A=b"],"stopGracePeriod":"1.5s"}}}`,
		`{"task":{"generic":{"kind":"null","payload":{"a":[1,null,{"b":1e300}]}}},"labels":{"a":"b"},"update":{"order":"START_FIRST","maxFailureRatio":0.5,"parallelism":1e1}}`,
		`{"replicas":"5"}`, `{"replicas":5.0}`, `{"replicas":1e3}`, `{"replicas":-1}`, `{"replicas":1.5}`, `{"replicas":18446744073709551615}`, `{"replicas":18446744073709551616}`,
		`{"availability":3}`, `{"availability":"DRAIN"}`, `{"expiresAt":"2030-01-01T00:00:00Z"}`, `{"name":null}`, `{"name":"\ud800"}`, `{"a":1,"a":2}`, `[]`, `{} {}`, `{`, `null`, ` null `,
	} {
		for i := range messages {
			f.Add(uint8(i), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		m := messages[int(which)%len(messages)].New().Interface()
		want := dynamicpb.NewMessage(m.ProtoReflect().Descriptor())
		var report validate.Report
		decodeBody(&report, m, "", body)
		refused, wrong := report.Err(), protojson.Unmarshal(body, want)
		if strings.TrimSpace(string(body)) == "null" {
			wrong = errors.New("null is no message")
		}
		switch {
		case wrong == nil && refused != nil:
			t.Errorf("%q is refused, want it accepted: %v", body, refused)
		case wrong != nil && refused == nil:
			t.Errorf("%q is accepted, want an error: %v", body, wrong)
		case refused == nil && !proto.Equal(m, want):
			t.Errorf("%q is decoded as %v, want %v", body, m, want)
		case refused != nil && (len(refused.Error()) > 100_000 || !utf8.ValidString(refused.Error())):
			t.Errorf("error of %q: %.500q", body, refused)
		}
	})
}
