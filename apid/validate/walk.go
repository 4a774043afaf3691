package validate

import (
	"fmt"
	"sort"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// visitor is called for each field that is set. Path is the field's JSON path
// ("task.container.mounts[2].type"); shape is the same without the indices
// ("task.container.mounts[].type"). A list or map is visited once for each of
// its values.
type visitor func(path, shape string, fd protoreflect.FieldDescriptor, v protoreflect.Value)

// walk visits all fields that are set, in the order of the contract.
func walk(m protoreflect.Message, path, shape string, visit visitor) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		p, s := join(path, fd.JSONName()), join(shape, fd.JSONName())
		v := m.Get(fd)
		switch {
		case fd.IsMap():
			walkMap(v.Map(), fd, p, s, visit)
		case fd.IsList():
			list := v.List()
			for j := range list.Len() {
				step(fd, list.Get(j), p+"["+strconv.Itoa(j)+"]", s+"[]", visit)
			}
		default:
			step(fd, v, p, s, visit)
		}
	}
}

func walkMap(m protoreflect.Map, fd protoreflect.FieldDescriptor, path, shape string, visit visitor) {
	keys := make([]string, 0, m.Len())
	values := make(map[string]protoreflect.Value, m.Len())
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		keys = append(keys, k.String())
		values[k.String()] = v
		return true
	})
	sort.Strings(keys)
	for _, k := range keys {
		step(fd.MapValue(), values[k], path+"["+strconv.Quote(short(k))+"]", shape+"[]", visit)
	}
}

func step(fd protoreflect.FieldDescriptor, v protoreflect.Value, path, shape string, visit visitor) {
	visit(path, shape, fd, v)
	if fd.Kind() == protoreflect.MessageKind && !opaque(fd.Message().FullName()) {
		walk(v.Message(), path, shape, visit)
	}
}

// opaque are messages that have a JSON form of their own.
func opaque(name protoreflect.FullName) bool {
	return name.Parent() == "google.protobuf"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// short keeps what a user wrote from filling an error.
func short(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%.*s...", most, s)
}

// wellFormed checks what holds for every field of every spec: enums have a
// known value, and times are times that are not negative.
func wellFormed(r *Report, path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.EnumKind:
		if fd.Enum().Values().ByNumber(v.Enum()) == nil {
			r.Invalid(path, "%d is not a value of %s", v.Enum(), fd.Enum().Name())
		}
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *durationpb.Duration:
			if err := m.CheckValid(); err != nil {
				r.Invalid(path, "is not a duration: out of range")
			} else if m.AsDuration() < 0 {
				r.Invalid(path, "must not be negative")
			}
		case *timestamppb.Timestamp:
			if err := m.CheckValid(); err != nil {
				r.Invalid(path, "is not a time: out of range")
			}
		}
	}
}
