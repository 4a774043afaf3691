// Package expand expands the templates in task specs, and in configs and secrets with the
// templating driver "golang". They are templates of text/template, and anyone who may submit a
// service may write them: what an expansion costs is bounded in time and memory.
package expand

import (
	"errors"
	"fmt"
	"strings"
	"text/template"
	"time"
)

// Driver is the name of the templating driver of configs and secrets.
const Driver = "golang"

// Bounds of one expansion, which is that of a file, or of all fields of a spec.
const (
	// maxText bounds what a field of a spec expands to, and maxFile what a file does.
	maxText = 32 << 10
	maxFile = 1000 << 10
	// maxDepth bounds how deep the parts of a template contain or invoke one another.
	// text/template takes stack for each level, and at an error it takes time that grows
	// with the square of the depth, in which nothing can stop it.
	maxDepth = 100
	// maxActions bounds the actions in one template.
	maxActions = 10_000
	// maxSteps bounds how many parts of a template are executed.
	maxSteps = 100_000
	// maxValues bounds the total size of the values that functions make.
	maxValues = 4 << 20
	// maxTime bounds how long it may take.
	maxTime = 2 * time.Second
)

// Context is what a template can use, as {{.Service.Name}}.
type Context struct {
	Service Service
	Node    Node
	Task    Task
}

// Service is the service of a task.
type Service struct {
	ID, Name string
	Labels   map[string]string
}

// Node is the node of a task.
type Node struct {
	ID, Hostname string
	Platform     Platform
}

// Platform is the platform of a node.
type Platform struct{ OS, Architecture string }

// Task is the task itself.
type Task struct {
	ID, Name string
	// Slot is the number of a replica, or the id of the node for tasks of global services.
	Slot string
}

// Sources are what the template of a file can use beside the context.
type Sources struct {
	// Secret and Config return the data of a secret or config that the task refers to, by
	// its target or its name. Env returns a variable of the task's environment.
	Secret, Config, Env func(name string) (string, error)
}

// Templated reports whether a text can be a template.
func Templated(text string) bool { return strings.Contains(text, "{{") }

// Text expands a text by itself, as a field of a task spec.
func Text(text string, c Context) (string, error) { return newBudget(c).expand(text, c, maxText, nil) }

// File expands the data of a config or secret. Secret is true if the template has read a
// secret.
func File(data []byte, c Context, from Sources) (expanded []byte, secret bool, err error) {
	out, err := newBudget(c).expand(string(data), c, maxFile, template.FuncMap{
		"secret": func(name string) (string, error) {
			secret = true
			return from.Secret(name)
		},
		"config": from.Config, "env": from.Env,
	})
	return []byte(out), secret, err
}

// CheckFile returns an error if the data of a config or secret is not a template.
func CheckFile(data []byte) error {
	none := func(string) (string, error) { return "", nil }
	_, err := parseText(string(data), template.FuncMap{"secret": none, "config": none, "env": none}, newBudget(Context{}))
	return err
}

func (b *budget) expand(text string, c Context, most int, more template.FuncMap) (string, error) {
	if !Templated(text) {
		return text, nil
	}
	t, err := parseText(text, more, b)
	if err != nil {
		return "", err
	}
	out := &output{most: most}
	if err := t.Execute(out, c); err != nil {
		return "", shorten(err)
	}
	return out.text.String(), nil
}

// name is that of each template in errors.
const name = "template"

// shorten leaves the cause of an error of text/template out that says only where it was.
func shorten(err error) error {
	var over *overError
	if errors.As(err, &over) {
		return over
	}
	return err
}

// output takes in what a template writes.
type output struct {
	text strings.Builder
	most int
}

func (o *output) Write(p []byte) (int, error) {
	if o.text.Len()+len(p) > o.most {
		return 0, &overError{fmt.Sprintf("template writes more than %d bytes", o.most)}
	}
	return o.text.Write(p)
}

// overError says which bound a template exceeds.
type overError struct{ text string }

func (e *overError) Error() string { return e.text }
