package cli

import (
	"encoding/json"
	"strings"
	"text/template"
	"text/template/parse"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// parseFormat reads the Go template of a --format. What it names of an object
// must be a field: a template over JSON would print "<no value>" for a mistake.
func parseFormat(format string, object protoreflect.MessageDescriptor) (*template.Template, error) {
	if !strings.Contains(format, "{{") {
		return nil, usage("--format: %q: want table, json or a Go template such as '{{.id}}'", format)
	}
	t, err := template.New("format").Option("missingkey=zero").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
	}).Parse(format)
	if err != nil {
		return nil, usage("--format: %w", err)
	}
	if t.Tree == nil {
		return t, nil
	}
	return t, checkNode(t.Root, object)
}

// checkNode checks the fields that a part of a template names. Object is what
// "." is there; nil if that is not known.
func checkNode(node parse.Node, object protoreflect.MessageDescriptor) error {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := checkNode(c, object); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		return checkNode(n.Pipe, object)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			for _, arg := range c.Args {
				if err := checkNode(arg, object); err != nil {
					return err
				}
			}
		}
	case *parse.FieldNode:
		return checkPath(n.Ident, object)
	case *parse.IfNode:
		return checkBranch(&n.BranchNode, object, object)
	case *parse.RangeNode:
		return checkBranch(&n.BranchNode, object, nil)
	case *parse.WithNode:
		return checkBranch(&n.BranchNode, object, nil)
	}
	return nil
}

func checkBranch(n *parse.BranchNode, object, inside protoreflect.MessageDescriptor) error {
	if err := checkNode(n.Pipe, object); err != nil {
		return err
	}
	if err := checkNode(n.List, inside); err != nil {
		return err
	}
	return checkNode(n.ElseList, object)
}

func checkPath(path []string, object protoreflect.MessageDescriptor) error {
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
