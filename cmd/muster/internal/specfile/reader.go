package specfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// reader converts nodes of YAML to values of JSON, as the fields of messages want
// them.
type reader struct {
	lines    Lines
	mistakes []Mistake
	nodes    int
}

func (r *reader) wrong(n *yaml.Node, path, format string, args ...any) {
	r.mistakes = append(r.mistakes, Mistake{Line: n.Line, Path: path, Text: fmt.Sprintf(format, args...)})
}

// follow returns what an alias stands for.
func (r *reader) follow(n *yaml.Node, path string) (*yaml.Node, bool) {
	r.nodes++
	if r.nodes == maxNodes {
		r.wrong(n, path, "the file has more than %d values, counting each use of an alias", maxNodes)
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n, r.nodes < maxNodes
}

// message reads the fields of a message.
func (r *reader) message(n *yaml.Node, md protoreflect.MessageDescriptor, path string) any {
	n, ok := r.follow(n, path)
	if !ok || isNull(n) && path != "" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.wrong(n, path, "want the fields of a %s (%s), not %s", md.Name(), fieldNames(md), describe(n))
		return nil
	}
	fields := map[string]any{}
	set := map[protoreflect.Name]bool{}
	r.fields(n, md, path, fields, set, false)
	return fields
}

// fields reads the entries of a mapping. What is merged gives way to what is set.
func (r *reader) fields(n *yaml.Node, md protoreflect.MessageDescriptor, path string, fields map[string]any, set map[protoreflect.Name]bool, merged bool) {
	var inherited []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			inherited = append(inherited, value)
			continue
		}
		fd := md.Fields().ByJSONName(key.Value)
		if fd == nil {
			fd = md.Fields().ByTextName(key.Value)
		}
		if fd == nil {
			r.wrong(key, path, "there is no field %q%s; a %s has %s", key.Value, suggestion(md, key.Value), md.Name(), fieldNames(md))
			continue
		}
		at := join(path, fd.JSONName())
		switch o := fd.ContainingOneof(); {
		case set[fd.Name()] && merged:
			continue
		case set[fd.Name()]:
			r.wrong(key, path, "the field %q is set twice", key.Value)
			continue
		case o != nil && !o.IsSynthetic() && !isNull(value):
			if other := chosen(o, fields); other != "" {
				r.wrong(key, path, "%q does not go with %q: want one of %s", key.Value, other, oneofNames(o))
				continue
			}
		}
		set[fd.Name()] = true
		r.lines[at] = key.Line
		fields[fd.JSONName()] = r.field(value, fd, at)
	}
	for _, value := range inherited {
		value, ok := r.follow(value, path)
		switch {
		case !ok:
		case value.Kind == yaml.MappingNode:
			r.fields(value, md, path, fields, set, true)
		case value.Kind == yaml.SequenceNode:
			for _, part := range value.Content {
				if part, ok := r.follow(part, path); ok && part.Kind == yaml.MappingNode {
					r.fields(part, md, path, fields, set, true)
				}
			}
		}
	}
}

// field reads the value of a field.
func (r *reader) field(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) any {
	n, ok := r.follow(n, path)
	if !ok || isNull(n) {
		return nil
	}
	switch {
	case fd.IsMap():
		if n.Kind != yaml.MappingNode {
			r.wrong(n, path, "want keys with values, not %s", describe(n))
			return nil
		}
		values := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			at := path + "[" + strconv.Quote(key) + "]"
			r.lines[at] = n.Content[i].Line
			values[key] = r.single(n.Content[i+1], fd.MapValue(), at, func(v any) any { return map[string]any{key: v} }, fd)
		}
		return values
	case fd.IsList():
		if n.Kind != yaml.SequenceNode {
			r.wrong(n, path, "want a list, not %s", describe(n))
			return nil
		}
		values := make([]any, len(n.Content))
		for i, element := range n.Content {
			at := path + "[" + strconv.Itoa(i) + "]"
			r.lines[at] = element.Line
			if isNull(element) {
				r.wrong(element, at, "an element of a list cannot be empty")
				continue
			}
			values[i] = r.single(element, fd, at, func(v any) any { return []any{v} }, fd)
		}
		return values
	}
	return r.single(n, fd, path, func(v any) any { return v }, fd)
}

// single reads one value. Whether a scalar fits is decided by protojson, which
// gets a message with this one value; in makes the field's value of it.
func (r *reader) single(n *yaml.Node, kind protoreflect.FieldDescriptor, path string, in func(any) any, field protoreflect.FieldDescriptor) any {
	if md := kind.Message(); md != nil && md.FullName().Parent() != "google.protobuf" {
		return r.message(n, md, path)
	}
	value, ok := r.plain(n, path)
	if !ok {
		return nil
	}
	asJSON, err := json.Marshal(map[string]any{field.JSONName(): in(value)})
	if err != nil || protojson.Unmarshal(asJSON, dynamicpb.NewMessage(field.ContainingMessage())) != nil {
		n, _ = r.follow(n, path)
		r.wrong(n, path, "want %s, not %s", wanted(kind, n), describe(n))
		return nil
	}
	return value
}

// plain reads a value of any form.
func (r *reader) plain(n *yaml.Node, path string) (any, bool) {
	n, ok := r.follow(n, path)
	if !ok {
		return nil, false
	}
	switch n.Kind {
	case yaml.MappingNode:
		values := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			value, ok := r.plain(n.Content[i+1], path)
			if !ok {
				return nil, false
			}
			values[n.Content[i].Value] = value
		}
		return values, true
	case yaml.SequenceNode:
		values := make([]any, len(n.Content))
		for i, element := range n.Content {
			if values[i], ok = r.plain(element, path); !ok {
				return nil, false
			}
		}
		return values, true
	}
	switch n.Tag {
	case "!!null":
		return nil, true
	case "!!bool", "!!int", "!!float":
		var value any
		if err := n.Decode(&value); err == nil {
			return value, true
		}
	}
	// Texts, and what looks like a date, are taken as they are written.
	return n.Value, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// chosen returns the field of a oneof that has a value already, "" if none has.
func chosen(o protoreflect.OneofDescriptor, fields map[string]any) string {
	for i := range o.Fields().Len() {
		if fd := o.Fields().Get(i); fields[fd.JSONName()] != nil {
			return fd.JSONName()
		}
	}
	return ""
}

func oneofNames(o protoreflect.OneofDescriptor) string {
	names := make([]string, o.Fields().Len())
	for i := range names {
		names[i] = o.Fields().Get(i).JSONName()
	}
	return strings.Join(names, ", ")
}

func fieldNames(md protoreflect.MessageDescriptor) string {
	names := map[string]bool{}
	for i := range md.Fields().Len() {
		names[md.Fields().Get(i).JSONName()] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

// describe says what a node is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	case n.Tag == "!!int" || n.Tag == "!!float":
		return "the number " + clip(n.Value)
	case n.Tag == "!!bool":
		return "the truth value " + n.Value
	}
	return strconv.Quote(clip(n.Value))
}

// wanted says what a field takes.
func wanted(fd protoreflect.FieldDescriptor, n *yaml.Node) string {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if n.Kind == yaml.ScalarNode {
			return fmt.Sprintf("a text (put it in quotes: %q)", clip(n.Value))
		}
		return "a text"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.EnumKind:
		var names []string
		for i := range fd.Enum().Values().Len() {
			if v := fd.Enum().Values().Get(i); v.Number() != 0 {
				names = append(names, string(v.Name()))
			}
		}
		return "one of " + strings.Join(names, ", ")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "a number"
	case protoreflect.BytesKind:
		return "base64"
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return "a whole number from 0 on"
	case protoreflect.MessageKind:
		switch fd.Message().Name() {
		case "Duration":
			return `a time in seconds like "90s" or "0.5s"`
		case "Timestamp":
			return `a time like "2026-01-31T12:00:00Z"`
		case "Struct":
			return "keys with values"
		}
	}
	return "a whole number"
}

func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "..."
	}
	return s
}
