package sdk_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/schema"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// payload has a field of each kind that a payload may have.
type payload struct {
	Command []string          `json:"command" jsonschema:"the command and its arguments"`
	Env     map[string]string `json:"env,omitempty"`
	Count   uint16            `json:"count,omitempty"`
	Grace   *sdk.Duration     `json:"grace,omitempty"`
	Mounts  []mount           `json:"mounts,omitempty"`
	Ratio   float64           `json:"ratio,omitempty"`
	Wait    bool              `json:"wait,omitempty"`
}

type mount struct {
	Source string `json:"source"`
	Nested *mount `json:"-"`
}

// task wraps JSON of a payload as a worker would send it.
func task(t testing.TB, text string) *sdk.Task {
	t.Helper()
	fields := &structpb.Struct{}
	if err := fields.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return &sdk.Task{Id: "t1", Spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{
		Generic: &musterv1.GenericRuntime{Kind: "test", Payload: fields},
	}}}
}

func TestDecodeReadsAPayload(t *testing.T) {
	t.Parallel()
	grace := sdk.Duration(90 * time.Second)
	want := payload{
		Command: []string{"sleep", "1"}, Env: map[string]string{"A": "b"}, Count: 3,
		Grace: &grace, Mounts: []mount{{Source: "/x"}}, Ratio: 0.5, Wait: true,
	}
	got, err := sdk.Decode[payload](task(t, `{"command":["sleep","1"],"env":{"A":"b"},"count":3,
		"grace":"1m30s","mounts":[{"source":"/x"}],"ratio":0.5,"wait":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(payload{})); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
	if got, err := sdk.Decode[payload](&sdk.Task{Id: "t1"}); err != nil || got.Command != nil {
		t.Errorf("Decode of no payload = %+v, %v; want an empty one", got, err)
	}
}

func TestDecodeNamesTheWrongField(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, field, says string }{
		"unknown":         {`{"command":[],"cmd":1}`, "cmd", "no such field"},
		"wrong case":      {`{"Command":["x"]}`, "Command", "no such field"},
		"unknown deeper":  {`{"mounts":[{"source":"/x"},{"sauce":"/y"}]}`, "mounts[1].sauce", "no such field"},
		"hidden":          {`{"mounts":[{"Nested":{}}]}`, "mounts[0].Nested", "no such field"},
		"string for list": {`{"command":"sleep 1"}`, "command", "must be an array"},
		"negative":        {`{"count":-1}`, "count", "must be a whole number"},
		"fraction":        {`{"count":1.5}`, "count", "must be a whole number"},
		"too large":       {`{"count":70000}`, "count", "must be a whole number"},
		"no duration":     {`{"grace":"soon"}`, "grace", "must be a duration"},
		"negative span":   {`{"grace":"-1s"}`, "grace", "must be a duration"},
		"number for span": {`{"grace":5}`, "grace", "must be a duration"},
		"text for bool":   {`{"wait":"yes"}`, "wait", "must be a boolean"},
		"list for object": {`{"env":["A=b"]}`, "env", "must be an object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := sdk.Decode[payload](task(t, test.text))
			var fault *wire.Error
			if !errors.As(err, &fault) {
				t.Fatalf("Decode = %v, want a fault of the spec", err)
			}
			if fault.Blame != wire.BlameSpec || fault.Temporary || fault.Field != test.field {
				t.Errorf("fault = %+v, want the spec's, in field %q", fault, test.field)
			}
			if !strings.Contains(fault.Error(), test.says) || !strings.Contains(fault.Error(), test.field) {
				t.Errorf("text = %q, want it to say %q of %q", fault.Error(), test.says, test.field)
			}
		})
	}
}

// resolve compiles the schema of the test's payload.
func resolve(t testing.TB) *jsonschema.Resolved {
	t.Helper()
	var parsed jsonschema.Schema
	text := schema.Of[payload](func(s *jsonschema.Schema) {
		s.Properties["command"].MinItems = new(1)
	})
	if err := json.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	resolved, err := parsed.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}

func TestSchemaAndDecodeAgree(t *testing.T) {
	t.Parallel()
	resolved := resolve(t)
	for text, good := range map[string]bool{
		`{"command":["x"]}`:                             true,
		`{"command":["x"],"grace":"1.5h2ms","count":7}`: true,
		`{"command":["x"],"mounts":[{"source":"/x"}]}`:  true,
		`{}`:                                   false,
		`{"command":[]}`:                       false,
		`{"command":["x"],"cmd":1}`:            false,
		`{"command":["x"],"grace":"-1s"}`:      false,
		`{"command":["x"],"grace":"soon"}`:     false,
		`{"command":["x"],"mounts":[{"s":1}]}`: false,
		`{"command":["x"],"count":1.5}`:        false,
	} {
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			t.Fatal(err)
		}
		if err := resolved.Validate(value); (err == nil) != good {
			t.Errorf("schema of %s says %v, want good = %t", text, err, good)
		}
	}
}

// Whatever a user sends, Decode must not panic; what the schema lets through
// when a spec is submitted, Decode must be able to read on the node.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"command":["x"],"grace":"1s"}`))
	f.Add([]byte(`{"command":null,"env":{"a":null},"count":1e3}`))
	f.Add([]byte(`{"mounts":[{"source":"/x","more":[[{}]]}],"grace":{}}`))
	resolved := resolve(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fields := &structpb.Struct{}
		if err := fields.UnmarshalJSON(raw); err != nil {
			return
		}
		in := &sdk.Task{Spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Payload: fields}}}}
		_, err := sdk.Decode[payload](in)
		if err == nil {
			return
		}
		var fault *wire.Error
		if !errors.As(err, &fault) || fault.Blame != wire.BlameSpec {
			t.Errorf("Decode(%s) = %v, want a fault of the spec", raw, err)
		}
		// 16-bit overflow by way of a float like 1e300 is refused by both, and
		// a duration beyond 290 years only by Decode.
		if resolved.Validate(fields.AsMap()) == nil && fault.Field != "grace" {
			t.Errorf("the schema takes %s, Decode says %v", raw, err)
		}
	})
}
