package expand

import (
	"fmt"
	"text/template"
	"text/template/parse"
)

// checkDepth returns an error if templates invoke themselves, or if their parts contain or
// invoke one another too deeply.
func checkDepth(t *template.Template) error {
	d := depths{t, map[string]int{}}
	for _, defined := range t.Templates() {
		if _, err := d.template(defined.Name()); err != nil {
			return err
		}
	}
	return nil
}

// depths measures how deep templates are.
type depths struct {
	all *template.Template
	// known has the depths of templates; underWay for those that are being measured.
	known map[string]int
}

const underWay = -1

func (d depths) template(name string) (int, error) {
	depth, known := d.known[name]
	if known && depth == underWay {
		return 0, fmt.Errorf("template %q invokes itself", name)
	}
	t := d.all.Lookup(name)
	if known || t == nil || t.Tree == nil {
		return depth, nil
	}
	d.known[name] = underWay
	depth, err := d.list(t.Root)
	d.known[name] = depth
	return depth, err
}

func (d depths) list(l *parse.ListNode) (int, error) {
	if l == nil {
		return 0, nil
	}
	most := 0
	for _, n := range l.Nodes {
		inner, err := d.node(n)
		if most = max(most, 1+inner); err == nil && most > maxDepth {
			err = &overError{fmt.Sprintf("template is nested more than %d deep", maxDepth)}
		}
		if err != nil {
			return 0, err
		}
	}
	return most, nil
}

func (d depths) node(n parse.Node) (int, error) {
	switch n := n.(type) {
	case *parse.IfNode:
		return d.branch(&n.BranchNode)
	case *parse.WithNode:
		return d.branch(&n.BranchNode)
	case *parse.RangeNode:
		return d.branch(&n.BranchNode)
	case *parse.TemplateNode:
		return d.template(n.Name)
	}
	return 0, nil
}

func (d depths) branch(b *parse.BranchNode) (int, error) {
	then, err := d.list(b.List)
	if err != nil {
		return 0, err
	}
	otherwise, err := d.list(b.ElseList)
	return max(then, otherwise), err
}
