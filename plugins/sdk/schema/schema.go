// Package schema derives the JSON Schema of an executor's payload from the
// struct that [sdk.Decode] reads it into. It lies beside the SDK, so that an
// executor that writes its schema by hand depends on no library for it.
package schema

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/musterhq/muster/plugins/sdk"
)

// durationPattern matches what a [sdk.Duration] is read from.
const durationPattern = `^(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$`

// Of derives the schema of a T. Field names are those of the "json" tags; a
// field without omitempty or omitzero is required; a "jsonschema" tag is the
// field's description. What the struct cannot say (a pattern, a smallest value)
// an edit adds, which may be nil. It panics if the type cannot be a payload, for
// that is a mistake in the program and shows at the first start.
func Of[T any](edit func(*jsonschema.Schema)) string {
	schema, err := jsonschema.For[T](&jsonschema.ForOptions{
		TypeSchemas: map[reflect.Type]*jsonschema.Schema{
			reflect.TypeFor[sdk.Duration](): {Type: "string", Pattern: durationPattern},
		},
	})
	if err != nil {
		panic(fmt.Errorf("derive the schema of a payload: %w", err))
	}
	schema.Schema = "https://json-schema.org/draft/2020-12/schema"
	if edit != nil {
		edit(schema)
	}
	text, err := json.Marshal(schema)
	if err != nil {
		panic(fmt.Errorf("encode the schema of a payload: %w", err))
	}
	return string(text)
}
