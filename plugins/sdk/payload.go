package sdk

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
)

// Duration is a duration in a payload, written as in Go: "1m30s".
type Duration time.Duration

// UnmarshalJSON reads a Duration. It refuses negative ones.
func (d *Duration) UnmarshalJSON(raw []byte) error {
	// The decoder adds the field's path to an error of this type only.
	wrong := &json.UnmarshalTypeError{Value: string(raw), Type: reflect.TypeFor[Duration]()}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return wrong
	}
	span, err := time.ParseDuration(text)
	if err != nil || span < 0 {
		return wrong
	}
	*d = Duration(span)
	return nil
}

// MarshalText writes a Duration.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(time.Duration(d).String()), nil
}

// Decode reads the payload of a task's generic runtime into a T. An unknown
// field or a value of the wrong type is a SpecFault that names the field.
func Decode[T any](task *Task) (T, error) {
	var into T
	payload := task.GetSpec().GetGeneric().GetPayload()
	if payload == nil {
		payload = &structpb.Struct{}
	}
	if field, ok := unknownField(payload.AsMap(), reflect.TypeFor[T](), ""); ok {
		return into, SpecFault(field, errors.New("there is no such field"))
	}
	raw, err := payload.MarshalJSON()
	if err != nil {
		return into, SpecFault("", fmt.Errorf("read the payload: %w", err))
	}
	if err := json.Unmarshal(raw, &into); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return into, SpecFault(wrong.Field, fmt.Errorf("it is a %s, and must be %s", wrong.Value, kindName(wrong.Type)))
		}
		return into, SpecFault("", fmt.Errorf("read the payload: %w", err))
	}
	return into, nil
}

// unknownField returns the path of the first field, in alphabetical order, that a value has
// and its type does not. The JSON decoder names such a field only in an error's text, and
// accepts "Command" for "command".
func unknownField(value any, into reflect.Type, path string) (string, bool) {
	for into.Kind() == reflect.Pointer {
		into = into.Elem()
	}
	if readsItself(into) {
		return "", false
	}
	switch value := value.(type) {
	case map[string]any:
		fields := jsonFields(into)
		for _, name := range sortedKeys(value) {
			at := join(path, name)
			var next reflect.Type
			switch into.Kind() {
			case reflect.Struct:
				known, ok := fields[name]
				if !ok {
					return at, true
				}
				next = known
			case reflect.Map:
				next = into.Elem()
			default:
				return "", false
			}
			if field, ok := unknownField(value[name], next, at); ok {
				return field, true
			}
		}
	case []any:
		if into.Kind() != reflect.Slice && into.Kind() != reflect.Array {
			return "", false
		}
		for i, element := range value {
			if field, ok := unknownField(element, into.Elem(), fmt.Sprintf("%s[%d]", path, i)); ok {
				return field, true
			}
		}
	}
	return "", false
}

// readsItself reports whether a type's own method reads its JSON.
func readsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// jsonFields returns a struct's fields by their JSON names.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	for _, field := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" || !field.IsExported() || (field.Anonymous && name == "") {
			continue
		}
		if name == "" {
			name = field.Name
		}
		fields[name] = field.Type
	}
	return fields
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// kindName returns the name of a JSON type.
func kindName(t reflect.Type) string {
	if t == reflect.TypeFor[Duration]() {
		return `a duration like "1m30s"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a whole number in the range of " + t.String()
	}
}
