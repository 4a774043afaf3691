package conformance

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"text/template"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

//go:embed tasks/*.yaml
var shipped embed.FS

// Template makes the spec of a task with a given behavior. It is a Go template whose
// output is YAML or JSON of a task's spec, as REST takes it.
type Template struct {
	text *template.Template
	// Wrong are specs that the executor must refuse, by field; see [Harness].
	Wrong map[string]*musterv1.TaskSpec
}

// values are what a template can use.
type values struct {
	Behavior
	// Script is what a shell would do for the operation. Most templates need only
	// this, and RunFor, ExitCode and the like are for executors that run no
	// commands.
	Script string
	// SickScript is what a shell would do for the health check of a sick task.
	SickScript string
	// RunSeconds and GraceSeconds are in seconds, 0 if they do not matter.
	RunSeconds   float64
	GraceSeconds float64
}

// ParseTemplate reads a template.
func ParseTemplate(text string) (*Template, error) {
	t, err := template.New("task").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
	}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read the template of a task: %w", err)
	}
	parsed := &Template{text: t}
	if _, err := parsed.Spec(Behavior{}, newMark()); err != nil {
		return nil, err
	}
	return parsed, nil
}

// TemplateFor returns the template that ships for a kind of runtime.
func TemplateFor(kind string) (*Template, bool) {
	text, err := shipped.ReadFile("tasks/" + kind + ".yaml")
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return nil, false
	}
	parsed, err := ParseTemplate(string(text))
	return parsed, err == nil
}

// Spec makes the spec of a task with a behavior, marked so that its process can
// be found.
func (t *Template) Spec(behavior Behavior, mark string) (*musterv1.TaskSpec, error) {
	var out bytes.Buffer
	err := t.text.Execute(&out, values{
		Behavior: behavior, Script: script(behavior, mark), SickScript: sickScript(), RunSeconds: behavior.RunFor.Seconds(), GraceSeconds: behavior.Grace.Seconds(),
	})
	if err != nil {
		return nil, fmt.Errorf("fill in the template of a task: %w", err)
	}
	raw, err := yaml.YAMLToJSON(out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read what the template of a task makes: %w", err)
	}
	spec := &musterv1.TaskSpec{}
	if err := protojson.Unmarshal(raw, spec); err != nil {
		return nil, fmt.Errorf("read what the template of a task makes: %w", err)
	}
	return spec, nil
}

// runsScripts says whether the tasks run the script.
func (t *Template) runsScripts() bool {
	mark := newMark()
	spec, err := t.Spec(Behavior{}, mark)
	return err == nil && strings.Contains(spec.String(), mark)
}

// sickScript is the health check of a sick task.
func sickScript() string { return fmt.Sprintf("echo '%s'; exit %d", SickOutput, SickExitCode) }

// script returns a shell script with a behavior. While it runs, one process "sleep" has the mark
// at the end of its argument.
func script(behavior Behavior, mark string) string {
	var s strings.Builder
	if behavior.Stubborn {
		s.WriteString("trap '' TERM\n")
	} else {
		// No other process may be there to end the sleep, and the first process of a
		// container ignores what it has no handler for.
		s.WriteString("trap 'kill $! 2>/dev/null; exit 143' TERM\n")
	}
	for i, line := range append(behavior.Says[:len(behavior.Says):len(behavior.Says)], behavior.Complains...) {
		fmt.Fprintf(&s, "printf '%%s\\n' '%s'", strings.ReplaceAll(line, "'", `'\''`))
		if i >= len(behavior.Says) {
			s.WriteString(" >&2")
		}
		s.WriteString("\n")
	}
	var read string
	for _, path := range behavior.Reads {
		read += fmt.Sprintf("cat '%s'; ", path)
	}
	if read != "" {
		fmt.Fprintf(&s, "trap '%s' HUP\n%s\n", strings.ReplaceAll(read, "'", ""), read)
	}
	span := behavior.RunFor
	if behavior.Forever {
		span = 24 * time.Hour
	}
	fmt.Fprintf(&s, "sleep %.3f%s &\n", span.Seconds(), mark)
	if read != "" {
		// A trap ends the wait, but not the sleep.
		s.WriteString("while kill -0 $! 2>/dev/null; do wait $!; done\n")
	}
	fmt.Fprintf(&s, "wait $!\nexit %d\n", behavior.ExitCode)
	return s.String()
}
