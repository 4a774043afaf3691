package cli

import (
	"encoding/json"
	"strings"
	"text/template"
	"text/template/parse"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// parseFormat reads the Go template of a --format. What it names of an object
// must be a field: a template over JSON would print "<no value>" for a mistake. Fill gives
// an object's JSON the messages that it lacks and that the template looks into, which
// would be an error.
func parseFormat(format string, object protoreflect.MessageDescriptor) (t *template.Template, fill func(object any), err error) {
	if !strings.Contains(format, "{{") {
		return nil, nil, usage("--format: %q: want table, json or a Go template such as '{{.id}}'", format)
	}
	t, err = template.New("format").Option("missingkey=zero").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
	}).Parse(format)
	if err != nil {
		return nil, nil, usage("--format: %w", err)
	}
	var f fields
	if t.Tree != nil {
		err = f.node(t.Root, object)
	}
	return t, f.fill, err
}

// fields are those of an object that a template names, each as a path of names.
type fields struct{ paths [][]string }

func (f *fields) fill(object any) {
	for _, path := range f.paths {
		m, _ := object.(map[string]any)
		for _, name := range path[:len(path)-1] {
			if m == nil {
				break
			}
			if m[name] == nil {
				m[name] = map[string]any{}
			}
			m, _ = m[name].(map[string]any)
		}
	}
}

// node checks the fields that a part of a template names. Object is what
// "." is there; nil if that is not known.
func (f *fields) node(node parse.Node, object protoreflect.MessageDescriptor) error {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := f.node(c, object); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		return f.node(n.Pipe, object)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			for _, arg := range c.Args {
				if err := f.node(arg, object); err != nil {
					return err
				}
			}
		}
	case *parse.FieldNode:
		return f.path(n.Ident, object)
	case *parse.IfNode:
		return f.branch(&n.BranchNode, object, object)
	case *parse.RangeNode:
		return f.branch(&n.BranchNode, object, nil)
	case *parse.WithNode:
		return f.branch(&n.BranchNode, object, nil)
	}
	return nil
}

func (f *fields) branch(n *parse.BranchNode, object, inside protoreflect.MessageDescriptor) error {
	if err := f.node(n.Pipe, object); err != nil {
		return err
	}
	if err := f.node(n.List, inside); err != nil {
		return err
	}
	return f.node(n.ElseList, object)
}

func (f *fields) path(path []string, object protoreflect.MessageDescriptor) error {
	if object != nil {
		f.paths = append(f.paths, path)
	}
	for _, name := range path {
		// Messages of google.protobuf have a JSON form of their own.
		if object == nil || object.FullName().Parent() == "google.protobuf" {
			return nil
		}
		field := object.Fields().ByJSONName(name)
		if field == nil {
			known := make([]string, object.Fields().Len())
			for i := range known {
				known[i] = object.Fields().Get(i).JSONName()
			}
			return usage("--format: .%s: a %s has no %q, but %s; --format json shows an object whole",
				strings.Join(path, "."), object.Name(), name, strings.Join(known, ", "))
		}
		object = nil
		if !field.IsList() && !field.IsMap() {
			object = field.Message()
		}
	}
	return nil
}
