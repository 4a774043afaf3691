package expand_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/expand"
)

var context = expand.Context{
	Service: expand.Service{ID: "s1", Name: "web", Labels: map[string]string{"tier": "front"}},
	Node:    expand.Node{ID: "n1", Hostname: "host", Platform: expand.Platform{OS: "linux", Architecture: "amd64"}},
	Task:    expand.Task{ID: "t1", Name: "web.3.t1", Slot: "3"},
}

func TestTextsExpand(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                       "plain",
		"{{.Service.Name}}":           "web",
		"{{.Service.ID}}":             "s1",
		"{{.Service.Labels.tier}}":    "front",
		"{{.Node.ID}}":                "n1",
		"{{.Node.Hostname}}":          "host",
		"{{.Node.Platform.OS}}":       "linux",
		"{{.Task.ID}}-{{.Task.Slot}}": "t1-3",
		"{{.Node.Platform.Architecture}}/{{.Task.Name}}":          "amd64/web.3.t1",
		`{{join "-" .Service.Name .Task.Slot}}`:                   "web-3",
		`{{printf "%s:%05d" .Service.Name 7}}`:                    "web:00007",
		`{{range $k, $v := .Service.Labels}}{{$k}}={{$v}}{{end}}`: "tier=front",
		`{{if eq .Task.Slot "3"}}third{{else}}other{{end}}`:       "third",
		`{{print "a" 1}}{{html "<"}}{{len .Service.Name}}`:        "a1&lt;3",
		`{{range 3}}{{.}}{{end}}`:                                 "012",
	} {
		if got, err := expand.Text(text, context); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestTextsThatCostTooMuchAreRefused has templates that would loop without end, or take all
// memory.
func TestTextsThatCostTooMuchAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"a loop that writes nothing": `{{range 1000000000000}}{{end}}`,
		"a loop in a loop":           `{{range 100000}}{{range 100000}}{{$x := 1}}{{end}}{{end}}`,
		"recursion":                  `{{define "a"}}{{template "a"}}{{template "a"}}{{end}}{{template "a"}}`,
		"recursion of the whole":     `{{template "template" .}}{{template "template" .}}`,
		"recursion through loops":    `{{define "a"}}{{range 1}}{{template "a"}}{{end}}{{end}}{{template "a"}}`,
		"recursion of two":           `{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{with 1}}{{else}}{{template "a"}}{{end}}{{end}}`,
		"a chain of templates":       chain(200),
		"a reset of the count":       `{{range 1000000000000}}{{_step -1000000}}{{end}}`,
		"a value that doubles":       `{{$x := "aaaaaaaaaaaaaaaa"}}{{range 60}}{{$x = print $x $x}}{{end}}`,
		"a width":                    strings.Repeat(`{{$x := printf "%999999d" 1}}`, 5000),
		"many widths":                `{{$x := printf "` + strings.Repeat("%30000d", 3000) + `" 1}}`,
		"a width as an argument":     `{{printf "%*d" 1000000 1}}`,
		"one argument many times":    `{{$x := printf "%30000d" 1}}{{$y := printf "` + strings.Repeat("%[1]s", 9000) + `" $x}}`,
		"a long join":                `{{$x := printf "%30000d" 1}}{{$y := join $x ` + strings.Repeat(`"" `, 900) + `}}`,
		"much output":                `{{range 1000}}` + strings.Repeat("x", 1000) + `{{end}}`,
		"too many actions":           strings.Repeat("{{1}}", 20000),
		"deep nesting":               strings.Repeat("{{if 1}}", 9000) + strings.Repeat("{{end}}", 9000),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := expand.Text(text, context); err == nil {
				t.Errorf("expands to %d bytes", len(got))
			} else if len(err.Error()) > 500 {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
		})
	}
}

// chain returns a text with templates that invoke one another, and at last what is wrong.
func chain(length int) string {
	var text strings.Builder
	for i := range length {
		fmt.Fprintf(&text, `{{define "t%d"}}{{range 1}}{{template "t%d"}}{{end}}{{end}}`, i, i+1)
	}
	fmt.Fprintf(&text, `{{define "t%d"}}deep{{end}}{{template "t0"}}`, length)
	return text.String()
}

func TestTemplatesMayInvokeOneAnother(t *testing.T) {
	if got, err := expand.Text(chain(40), context); err != nil || got != "deep" {
		t.Errorf("Text = %q, %v", got, err)
	}
}

func TestFieldsOfOneSpecShareTheBounds(t *testing.T) {
	costly := &musterv1.ContainerSpec{Env: []string{"A={{range 20000}}{{end}}"}}
	one := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: costly}}
	if _, err := expand.Spec(one, context); err != nil {
		t.Errorf("Spec with one costly field = %v", err)
	}
	for range 20 {
		one.Group = append(one.Group, &musterv1.GroupContainer{Runtime: &musterv1.GroupContainer_Container{Container: costly}})
	}
	var wrong *expand.FieldError
	if _, err := expand.Spec(one, context); !errors.As(err, &wrong) || !strings.HasPrefix(wrong.Field, "group[") {
		t.Errorf("Spec with many costly fields = %v, want an error about one of the group's", err)
	}
}

// TestErrorsDoNotQuoteValues has mistakes with a value that may be secret. Errors of tasks
// are stored and shown.
func TestErrorsDoNotQuoteValues(t *testing.T) {
	const canary = "p4ss*w0rd%99999999d"
	from := expand.Sources{Secret: func(string) (string, error) { return canary, nil }}
	for _, text := range []string{
		`{{printf (secret "a")}}`, `{{printf (slice (secret "a") 6)}}`, `{{index (secret "a") "x"}}`, `{{(secret "a").X}}`, `{{join (secret "a") 1}}`,
		`{{call (secret "a")}}`, `{{lt (secret "a") 1}}`, `{{slice (secret "a") 999}}`, `{{index .Service.Labels (secret "a") 1}}`,
	} {
		_, _, err := expand.File([]byte(text), context, from)
		if err == nil || strings.Contains(err.Error(), canary[:4]) || strings.Contains(err.Error(), canary[6:]) || strings.Contains(err.Error(), "99999") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestTextsThatAreWrongAreRefused(t *testing.T) {
	for _, text := range []string{
		"{{", "{{.Service.Nam}}", "{{.Service.Labels.gone}}", "{{nothing}}", "{{.Task.Slot.X}}", "{{join}}", `{{secret "a"}}`, `{{env "A"}}`,
	} {
		if got, err := expand.Text(text, context); err == nil {
			t.Errorf("%s = %q, want an error", text, got)
		}
	}
}

func TestSpecsExpandWhereTemplatesAreAllowed(t *testing.T) {
	container := func(value string) *musterv1.ContainerSpec {
		return &musterv1.ContainerSpec{
			Image: "{{.Task.ID}}", Env: []string{"A=" + value, "{{.Task.ID}}=x", "B"}, Hostname: value, Dir: value, User: value,
			Mounts: []*musterv1.Mount{{Source: value, Target: value, VolumeOptions: &musterv1.VolumeOptions{
				Labels: map[string]string{"l": value}, DriverConfig: &musterv1.Driver{Name: "d", Options: map[string]string{"o": value}},
			}}},
		}
	}
	task := func(value string) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Container{Container: container(value)},
			Group:   []*musterv1.GroupContainer{{Name: "g", Runtime: &musterv1.GroupContainer_Container{Container: container(value)}}},
		}
	}
	given := task("{{.Service.Name}}.{{.Task.Slot}}")
	before := proto.CloneOf(given)
	got, err := expand.Spec(given, context)
	if err != nil || !proto.Equal(got, task("web.3")) {
		t.Errorf("Spec = %v, %v", got, err)
	}
	if !proto.Equal(given, before) {
		t.Errorf("the given spec was changed: %v", given)
	}
	var wrong *expand.FieldError
	if _, err := expand.Spec(task("{{.Nothing}}"), context); !errors.As(err, &wrong) || wrong.Field != "container.env[0]" {
		t.Errorf("Spec of a wrong template = %v, want an error about container.env[0]", err)
	}
}

func TestFilesUseSecretsConfigsAndEnv(t *testing.T) {
	from := expand.Sources{
		Secret: func(name string) (string, error) { return "secret " + name, nil },
		Config: func(name string) (string, error) { return "config " + name, nil },
		Env:    func(name string) (string, error) { return "", errors.New("no " + name) },
	}
	got, secret, err := expand.File([]byte(`{{config "a"}} {{.Node.ID}}`), context, from)
	if err != nil || secret || string(got) != "config a n1" {
		t.Errorf("File = %q, %v, %v", got, secret, err)
	}
	got, secret, err = expand.File([]byte(`{{secret "a"}}`), context, from)
	if err != nil || !secret || string(got) != "secret a" {
		t.Errorf("File = %q, %v, %v; want it to be secret", got, secret, err)
	}
	if _, _, err := expand.File([]byte(`{{env "A"}}`), context, from); err == nil || !strings.Contains(err.Error(), "no A") {
		t.Errorf("File without the variable = %v", err)
	}
	if err := expand.CheckFile([]byte(`{{secret "a"}}{{.Anything}}`)); err != nil {
		t.Error(err)
	}
	if err := expand.CheckFile([]byte(`{{secret`)); err == nil {
		t.Error("CheckFile accepts what is not a template")
	}
}

func FuzzText(f *testing.F) {
	f.Add(`{{range 10}}{{.Service.Name}}{{end}}`)
	f.Add(`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`)
	f.Fuzz(func(_ *testing.T, text string) {
		_, _ = expand.Text(text, context)
	})
}
