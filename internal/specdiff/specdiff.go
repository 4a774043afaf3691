// Package specdiff compares specs: whether tasks must be replaced ([Tasks]), and which
// changes of one spec another keeps ([Kept]).
package specdiff

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

// Kept returns the paths of the fields in which after differs from before, if next
// keeps all of these changes. It returns nil if next takes back or replaces one of
// them, or if there are none. All three are messages of the same type.
//
// A list keeps a change if it still has the elements that were added, and still
// lacks those that were removed; a map likewise. Paths have the names that fields
// have in JSON, such as "task.container.image".
func Kept(before, after, next proto.Message) []string {
	c := comparison{}
	if !c.message(nil, before.ProtoReflect(), after.ProtoReflect(), next.ProtoReflect()) {
		return nil
	}
	return c.changed
}

// comparison collects the paths of changed fields.
type comparison struct{ changed []string }

// message reports whether next keeps what after changed in before.
func (c *comparison) message(path []string, before, after, next protoreflect.Message) bool {
	fields := after.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); !c.field(append(path, fd.JSONName()), fd, before, after, next) {
			return false
		}
	}
	return true
}

func (c *comparison) field(path []string, fd protoreflect.FieldDescriptor, before, after, next protoreflect.Message) bool {
	if equal(fd, before, after) {
		return true
	}
	b, a, n := before.Get(fd), after.Get(fd), next.Get(fd)
	switch {
	case fd.IsMap():
		c.changed = append(c.changed, strings.Join(path, "."))
		return keptMap(b.Map(), a.Map(), n.Map())
	case fd.IsList():
		c.changed = append(c.changed, strings.Join(path, "."))
		return keptList(b.List(), a.List(), n.List())
	case isStruct(fd) && before.Has(fd) && after.Has(fd):
		// Its keys are the user's, so it is one field, which is compared like a map.
		c.changed = append(c.changed, strings.Join(path, "."))
		keys := fd.Message().Fields().ByName("fields")
		return next.Has(fd) && keptMap(b.Message().Get(keys).Map(), a.Message().Get(keys).Map(), n.Message().Get(keys).Map())
	case fd.Message() != nil && before.Has(fd) && after.Has(fd):
		return next.Has(fd) && c.message(path, b.Message(), a.Message(), n.Message())
	default:
		c.changed = append(c.changed, strings.Join(path, "."))
		return equal(fd, after, next)
	}
}

func isStruct(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == (*structpb.Struct)(nil).ProtoReflect().Descriptor().FullName()
}

// equal reports whether two messages agree in a field, its presence included.
func equal(fd protoreflect.FieldDescriptor, x, y protoreflect.Message) bool {
	return x.Has(fd) == y.Has(fd) && x.Get(fd).Equal(y.Get(fd))
}

func keptMap(before, after, next protoreflect.Map) bool {
	kept := true
	check := func(key protoreflect.MapKey, _ protoreflect.Value) bool {
		if same(before, after, key) {
			return true
		}
		kept = same(after, next, key)
		return kept
	}
	before.Range(check)
	if kept {
		after.Range(check)
	}
	return kept
}

// same reports whether two maps agree in a key.
func same(x, y protoreflect.Map, key protoreflect.MapKey) bool {
	return x.Has(key) == y.Has(key) && (!x.Has(key) || x.Get(key).Equal(y.Get(key)))
}

func keptList(before, after, next protoreflect.List) bool {
	b, a, n := values(before), values(after), values(next)
	moved := true
	for _, v := range a {
		if !has(b, v) {
			moved = false
			if !has(n, v) {
				return false
			}
		}
	}
	for _, v := range b {
		if !has(a, v) {
			moved = false
			if has(n, v) {
				return false
			}
		}
	}
	// Where only the order has changed, that is the change.
	return !moved || slices.EqualFunc(a, n, protoreflect.Value.Equal)
}

func values(l protoreflect.List) []protoreflect.Value {
	all := make([]protoreflect.Value, l.Len())
	for i := range all {
		all[i] = l.Get(i)
	}
	return all
}

func has(list []protoreflect.Value, v protoreflect.Value) bool {
	return slices.ContainsFunc(list, v.Equal)
}
