package payload_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/payload"
)

func TestSchemasThatRefuseEveryPayloadCannotBeUsed(t *testing.T) {
	t.Parallel()
	for schema, refuses := range map[string]bool{
		`false`:                                            true,
		`{"not":{}}`:                                       true,
		`{"not":true}`:                                     true,
		`{"not":{"type":"object"}}`:                        true,
		`{"not":{"anyOf":[false,{}]}}`:                     true,
		`{"not":{"not":false}}`:                            true,
		`{"type":"string"}`:                                true,
		`{"type":["null","array"]}`:                        true,
		`{"const":7}`:                                      true,
		`{"enum":[1,"a",null]}`:                            true,
		`{"allOf":[{},{"not":{}}]}`:                        true,
		`{"anyOf":[false,{"const":1}]}`:                    true,
		`{"oneOf":[{"type":"integer"}]}`:                   true,
		`{"$ref":"#/$defs/a","$defs":{"a":{"not":{}}}}`:    true,
		`{"required":["a"],"properties":{"a":false}}`:      true,
		`{"required":["a"],"properties":{"a":{"not":{}}}}`: true,
		`{"required":["a"],"additionalProperties":false}`:  true,
		`true`:                           false,
		`{}`:                             false,
		`{"not":{"required":["a"]}}`:     false,
		`{"not":{"type":"string"}}`:      false,
		`{"type":["null","object"]}`:     false,
		`{"enum":[{},1]}`:                false,
		`{"anyOf":[false,{}]}`:           false,
		`{"properties":{"a":false}}`:     false,
		`{"additionalProperties":false}`: false,
		`{"required":["a"],"properties":{"a":{"not":{"type":"object"}}}}`:                 false,
		`{"required":["a"],"patternProperties":{"a":{}},"additionalProperties":false}`:    false,
		`{"$ref":"#/$defs/a","$defs":{"a":{"type":"object"},"b":{"not":{}}}}`:             false,
		`{"required":["command"],"properties":{"command":{"type":"array","minItems":1}}}`: false,
	} {
		err := payload.Compile(schema).Err()
		if errors.Is(err, payload.ErrRefusesAll) != refuses || !refuses && err != nil {
			t.Errorf("%s: error is %v, refuses everything: %v", schema, err, refuses)
		}
	}
}

// FuzzRefusesAll holds that a payload never passes the schema that is said to
// refuse every payload.
func FuzzRefusesAll(f *testing.F) {
	f.Add(`{"not":{"type":"object"}}`, `{}`)
	f.Add(`{"required":["a"],"properties":{"a":{"not":{"const":1}}}}`, `{"a":2}`)
	f.Add(`{"oneOf":[{"$ref":"#/$defs/a"},{"enum":[{}]}],"$defs":{"a":{"type":["object"]}}}`, `{"b":1}`)
	f.Fuzz(func(t *testing.T, schema, text string) {
		s := payload.Compile(schema)
		if !errors.Is(s.Err(), payload.ErrRefusesAll) {
			return
		}
		p := &structpb.Struct{}
		if p.UnmarshalJSON([]byte(text)) != nil {
			return
		}
		content, err := payload.New(&musterv1.GenericRuntime{Payload: p})
		if err != nil {
			return
		}
		// A tautology around the schema keeps it from being recognized.
		wrapped := payload.Compile(`{"allOf":[{"if":{},"then":` + schema + `}]}`)
		if strings.Contains(schema, "$ref") || wrapped.Err() != nil {
			return
		}
		if len(wrapped.Check(content)) == 0 {
			t.Fatalf("%s is said to refuse every payload, and accepts %s", schema, text)
		}
	})
}
