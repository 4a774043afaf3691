package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/musterhq/muster/apid/validate"
)

// decodeBody decodes a JSON body into m, which is the request's field at. If protobuf's
// decoder refuses the body, the report names every field that m does not have, and every
// value that does not fit its field.
func decodeBody(report *validate.Report, m proto.Message, at string, body []byte) {
	err := protojson.Unmarshal(body, m)
	// The decoder accepts null for any message.
	if err != nil || string(bytes.TrimSpace(body)) == "null" {
		explainBody(report, m.ProtoReflect().Descriptor(), at, body, err)
	}
}

// explainBody reports what is wrong with a body. What it finds no name for is reported
// as refused, the error of protobuf's decoder.
func explainBody(report *validate.Report, message protoreflect.MessageDescriptor, at string, body []byte, refused error) {
	root := at
	if root == "" {
		root = "body"
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var doc any
	if err := decoder.Decode(&doc); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			report.Invalid(root, "is not JSON: %v (at byte %d)", syntax, syntax.Offset)
		} else {
			report.Invalid(root, "is not JSON: it ends in the middle")
		}
		return
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		report.Invalid(root, "has something after its end")
		return
	}
	c := bodyChecker{report: report}
	if _, ok := doc.(map[string]any); !ok {
		report.Invalid(root, "must be an object")
		return
	}
	if c.message(message, at, doc); !c.found {
		report.Invalid(root, "%s", strings.ReplaceAll(clip(refused.Error()), "\u00a0", " "))
	}
}

// decodedBody is the body of a request that has been decoded. It is the request's body
// until the gateway asks the marshaler to decode it.
type decodedBody struct{ message proto.Message }

func (decodedBody) Read([]byte) (int, error) { return 0, io.EOF }
func (decodedBody) Close() error             { return nil }

// into puts the message where the gateway wants it: into the request, or into a pointer
// to one of the request's fields.
func (b decodedBody) into(v any) error {
	if request, whole := v.(proto.Message); whole {
		proto.Merge(request, b.message)
		return nil
	}
	field := reflect.ValueOf(v)
	if want, have := field.Type(), reflect.PointerTo(reflect.TypeOf(b.message)); want != have {
		return fmt.Errorf("body is decoded as %v, want %v", have, want)
	}
	field.Elem().Set(reflect.ValueOf(b.message))
	return nil
}

type bodyChecker struct {
	report *validate.Report
	found  bool
}

func (c *bodyChecker) wrong(at, format string, args ...any) {
	c.found = true
	c.report.Invalid(at, format, args...)
}

func (c *bodyChecker) message(m protoreflect.MessageDescriptor, at string, v any) {
	if v == nil {
		return
	}
	switch _, text := v.(string); m.FullName() {
	case "google.protobuf.Duration", "google.protobuf.Timestamp":
		if !text {
			c.wrong(at, "must be a string")
		}
	}
	if m.FullName().Parent() == "google.protobuf" {
		return // it has a JSON form of its own
	}
	object, ok := v.(map[string]any)
	if !ok {
		c.wrong(at, "must be an object")
		return
	}
	keys := make([]string, 0, len(object))
	for k := range object {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fd := m.Fields().ByJSONName(k)
		if fd == nil {
			fd = m.Fields().ByName(protoreflect.Name(k))
		}
		path := clip(k)
		if at != "" {
			path = at + "." + path
		}
		if fd == nil {
			c.wrong(path, "is not a field of %s", m.Name())
			continue
		}
		c.field(fd, path, object[k])
	}
}

func (c *bodyChecker) field(fd protoreflect.FieldDescriptor, at string, v any) {
	switch {
	case v == nil:
	case fd.IsMap():
		object, ok := v.(map[string]any)
		if !ok {
			c.wrong(at, "must be an object")
			return
		}
		for k, e := range object {
			c.value(fd.MapValue(), at+"["+strconv.Quote(clip(k))+"]", e)
		}
	case fd.IsList():
		list, ok := v.([]any)
		if !ok {
			c.wrong(at, "must be a list")
			return
		}
		for i, e := range list {
			c.value(fd, at+"["+strconv.Itoa(i)+"]", e)
		}
	default:
		c.value(fd, at, v)
	}
}

func (c *bodyChecker) value(fd protoreflect.FieldDescriptor, at string, v any) {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		c.message(fd.Message(), at, v)
	case protoreflect.StringKind, protoreflect.BytesKind:
		if _, ok := v.(string); !ok {
			c.wrong(at, "must be a string")
		}
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			c.wrong(at, "must be true or false")
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		// As text there are Infinity and NaN, too.
		switch v.(type) {
		case json.Number, string:
		default:
			c.wrong(at, "must be a number")
		}
	case protoreflect.EnumKind:
		c.enum(fd.Enum(), at, v)
	case protoreflect.Uint64Kind, protoreflect.Uint32Kind:
		c.number(at, v, true, bitsOf(fd.Kind()))
	case protoreflect.Int64Kind, protoreflect.Int32Kind:
		c.number(at, v, false, bitsOf(fd.Kind()))
	}
}

func bitsOf(k protoreflect.Kind) int {
	if k == protoreflect.Int32Kind || k == protoreflect.Uint32Kind {
		return 32
	}
	return 64
}

func (c *bodyChecker) enum(e protoreflect.EnumDescriptor, at string, v any) {
	if _, number := v.(json.Number); number {
		c.number(at, v, false, 32)
		return
	}
	name, ok := v.(string)
	if !ok {
		c.wrong(at, "must be the name of a value")
		return
	}
	if e.Values().ByName(protoreflect.Name(name)) != nil {
		return
	}
	var names []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			names = append(names, string(v.Name()))
		}
	}
	c.wrong(at, "is %s; must be one of %s", strconv.Quote(clip(name)), strings.Join(names, ", "))
}

// number checks a whole number of so many bits. It may be text, and 1e3 and 2.0 are
// whole.
func (c *bodyChecker) number(at string, v any, unsigned bool, bits int) {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	default:
		c.wrong(at, "must be a whole number")
		return
	}
	if unsigned && strings.HasPrefix(text, "-") {
		c.wrong(at, "must not be negative")
		return
	}
	var err error
	if unsigned {
		_, err = strconv.ParseUint(text, 10, bits)
	} else {
		_, err = strconv.ParseInt(text, 10, bits)
	}
	if err == nil {
		return
	}
	float, ferr := strconv.ParseFloat(text, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), errors.Is(ferr, strconv.ErrRange), math.Abs(float) >= math.Exp2(float64(bits)) && !math.IsInf(float, 0):
		c.wrong(at, "is out of range")
	case ferr != nil, float != math.Trunc(float), strings.Trim(text, "+-.0123456789eE") != "":
		c.wrong(at, "must be a whole number")
	}
}
