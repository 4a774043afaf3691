package expand

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

// budget is what is left of one expansion.
type budget struct {
	steps, values int
	until         time.Time
	// context is about the size of the context as text, which is the most that a value
	// can be that is no string.
	context int
}

func newBudget(c Context) *budget {
	size := 512
	for key, value := range c.Service.Labels {
		size += len(key) + len(value) + 2
	}
	for _, text := range []string{c.Service.ID, c.Service.Name, c.Node.ID, c.Node.Hostname, c.Task.ID, c.Task.Name, c.Task.Slot} {
		size += len(text)
	}
	return &budget{steps: maxSteps, values: maxValues, until: time.Now().Add(maxTime), context: size}
}

// spend takes steps off the budget.
func (b *budget) spend(steps int) error {
	if b.steps -= steps; b.steps < 0 {
		return &overError{fmt.Sprintf("template takes more than %d steps", maxSteps)}
	}
	if time.Now().After(b.until) {
		return &overError{fmt.Sprintf("template takes longer than %s", maxTime)}
	}
	return nil
}

// use takes the size of a value off the budget before it is made.
func (b *budget) use(size int) error {
	if size > b.values {
		return &overError{fmt.Sprintf("template makes values of more than %d bytes", maxValues)}
	}
	b.values -= size
	return nil
}

// sizes returns the total and the greatest size of values as text.
func (b *budget) sizes(values []any) (sum, most int) {
	for _, v := range values {
		size := b.context
		if text, ok := v.(string); ok {
			size = len(text)
		}
		sum, most = sum+size+1, max(most, size)
	}
	return sum, most
}

// step is the name of the function that counts.
const step = "_step"

// functions are those of text/template that make values, within the budget, and join.
func (b *budget) functions() template.FuncMap {
	// growth is how much longer a text can become when characters are escaped.
	const growth = 12
	bounded := func(most int, f func(...any) string) func(...any) (string, error) {
		return func(values ...any) (string, error) {
			sum, _ := b.sizes(values)
			if err := b.use(most * sum); err != nil {
				return "", err
			}
			return f(values...), nil
		}
	}
	return template.FuncMap{
		step:       func(steps int) (string, error) { return "", b.spend(max(steps, 1)) },
		"print":    bounded(1, fmt.Sprint),
		"println":  bounded(1, fmt.Sprintln),
		"html":     bounded(growth, template.HTMLEscaper),
		"js":       bounded(growth, template.JSEscaper),
		"urlquery": bounded(growth, template.URLQueryEscaper),
		"printf": func(format string, values ...any) (string, error) {
			_, most := b.sizes(values)
			width, err := widest(format)
			if err == nil {
				err = b.use(len(format) + strings.Count(format, "%")*(growth*(most+32)+width))
			}
			if err != nil {
				return "", err
			}
			return fmt.Sprintf(format, values...), nil
		},
		"join": func(texts ...string) (string, error) {
			if len(texts) == 0 {
				return "", fmt.Errorf("want a separator, and texts to join")
			}
			size := len(texts) * len(texts[0])
			for _, text := range texts {
				size += len(text)
			}
			if err := b.use(size); err != nil {
				return "", err
			}
			return strings.Join(texts[1:], texts[0]), nil
		},
	}
}

// widest returns the greatest number in a format. Its errors do not quote the format, which
// may be the data of a secret.
func widest(format string) (int, error) {
	if strings.Contains(format, "*") {
		return 0, errors.New("a format has a width that is an argument: write a number")
	}
	most := 0
	for _, digits := range strings.FieldsFunc(format, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(digits)
		if err != nil || n > maxText {
			return 0, fmt.Errorf("a format has a number of more than %d", maxText)
		}
		most = max(most, n)
	}
	return most, nil
}

// parseText reads a template, and makes it and its loops count their steps.
func parseText(text string, more template.FuncMap, b *budget) (*template.Template, error) {
	if n := strings.Count(text, "{{"); n > maxActions {
		return nil, fmt.Errorf("template has %d actions; at most %d are allowed", n, maxActions)
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(b.functions()).Funcs(more).Parse(text)
	if err != nil {
		return nil, err
	}
	if err := checkDepth(t); err != nil {
		return nil, err
	}
	for _, defined := range t.Templates() {
		if defined.Tree != nil {
			count(defined.Root)
		}
	}
	return t, nil
}

// instrument makes the loops below a node count their steps, and returns how many the node
// takes itself.
func instrument(node parse.Node) int {
	switch n := node.(type) {
	case *parse.ListNode:
		steps := 0
		if n != nil {
			for _, inner := range n.Nodes {
				steps += instrument(inner)
			}
		}
		return steps
	case *parse.IfNode:
		return 1 + instrument(n.List) + instrument(n.ElseList)
	case *parse.WithNode:
		return 1 + instrument(n.List) + instrument(n.ElseList)
	case *parse.RangeNode:
		count(n.List)
		return 1 + instrument(n.ElseList)
	}
	return 1
}

// count makes a list count its steps each time it is executed.
func count(list *parse.ListNode) {
	steps := instrument(list)
	// It is the same as the action {{_step N}}.
	text := fmt.Sprintf("{{%s %d}}", step, 1+steps)
	trees, err := parse.Parse(step, text, "", "", map[string]any{step: true})
	if err != nil {
		panic(fmt.Sprintf("expand: %v", err)) // The text is always the same.
	}
	list.Nodes = append([]parse.Node{trees[step].Root.Nodes[0]}, list.Nodes...)
}
