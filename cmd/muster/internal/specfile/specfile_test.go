package specfile_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/specfile"
)

func TestMistakesNameLinesAndFields(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		file  string
		wants []string
	}{
		"unknown fields": {
			"name: x\nreplicatd: {replicas: 2}\ntask:\n  generic: {kind: \"null\"}\n  restrt: {}\n",
			[]string{`f:2: there is no field "replicatd"; did you mean "replicated"?`, `f:5: task: there is no field "restrt"; did you mean "restart"?`, "placement"},
		},
		"a field in the wrong place": {"name: x\nimage: nginx\n", []string{`f:2: there is no field "image"; did you mean "task.container.image"?`}},
		"a field like no other":      {"name: x\nqqqqqq: 1\n", []string{`f:2: there is no field "qqqqqq"; a ServiceSpec has dependsOn, endpoint, `}},
		"wrong types": {
			"name: 7\nlabels: [a]\nreplicated:\n  replicas: many\ntask:\n  restart: {condition: SOMETIMES, delay: 1m}\n  generic: nginx\n",
			[]string{
				`f:1: name: want a text (put it in quotes: "7"), not the number 7`, "f:2: labels: want keys with values, not a list",
				`f:4: replicated.replicas: want a whole number from 0 on, not "many"`, "f:6: task.restart.condition: want one of NONE, ON_FAILURE, ANY",
				`f:6: task.restart.delay: want a time in seconds like "90s"`, "f:7: task.generic: want the fields of a GenericRuntime (kind, payload), not \"nginx\"",
			},
		},
		"more wrong types": {
			"labels:\n  a: true\n  b: [x]\nupdate: {maxFailureRatio: much}\ntask:\n  container:\n    image: {a: b}\n    args: nginx\n    tty: maybe\n    env: [[a]]\n",
			[]string{
				`f:2: labels["a"]: want a text (put it in quotes: "true"), not the truth value true`, `f:3: labels["b"]: want a text, not a list`,
				`f:4: update.maxFailureRatio: want a number, not "much"`, "f:7: task.container.image: want a text, not keys with values",
				`f:8: task.container.args: want a list, not "nginx"`, `f:9: task.container.tty: want true or false, not "maybe"`, "f:10: task.container.env[0]: want a text, not a list",
			},
		},
		"a negative number":      {"replicated: {replicas: -1}\n", []string{"f:1: replicated.replicas: want a whole number from 0 on, not the number -1"}},
		"an empty element":       {"task:\n  container:\n    args:\n    - a\n    -\n", []string{"f:5: task.container.args[1]: an element of a list cannot be empty"}},
		"JSON":                   {"{\n\t\"name\": \"x\",\n\t\"task\": {\n\t\t\"container\": {\"imag\": \"nginx\"}\n\t}\n}", []string{`f:4: task.container: there is no field "imag"; did you mean "image"?`}},
		"broken JSON":            {"{\n\"name\": \"x\",\n\"task\" {}\n}", []string{"f:3: invalid JSON"}},
		"broken YAML":            {"name: x\ntask:\n\tgeneric: {}\n", []string{"f: yaml: line 3"}},
		"two runtimes":           {"name: x\ntask:\n  generic: {kind: a}\n  container: {image: a}\n", []string{`f:4: task: "container" does not go with "generic": want one of container, `}},
		"a key twice":            {"name: x\nname: y\n", []string{"f:2: ", "name"}},
		"a field in two ways":    {"task:\n  forceUpdate: 1\n  force_update: 2\n", []string{`f:3: task: the field "force_update" is set twice`}},
		"two documents":          {"name: x\n---\nname: y\n", []string{"f:2: a second document begins here"}},
		"no document":            {"", []string{"f: the file is empty"}},
		"only a comment":         {"# nothing\n", []string{"f: the file is empty"}},
		"a document of nothing":  {"---\n", []string{"f: the file is empty"}},
		"a list":                 {"- name: x\n", []string{"f:1: want the fields of a ServiceSpec", "not a list"}},
		"the same mistake twice": {"task: &t {x: 1}\nrollback: *t\n", []string{`f:1: task: there is no field "x"`, `f:1: rollback: there is no field "x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := specfile.Read("f", []byte(tt.file), &musterv1.ServiceSpec{})
			if err == nil {
				t.Fatal("the file is accepted")
			}
			text := "\n" + err.Error()
			for _, want := range tt.wants {
				if strings.HasPrefix(want, "f:") {
					want = "\n" + want
				}
				if !strings.Contains(text, want) {
					t.Errorf("error is %s\nwant %q", text, want)
				}
			}
			if strings.Contains(text, "proto:") || strings.Contains(text, "(line 1:") {
				t.Errorf("error is that of another encoding: %s", text)
			}
		})
	}
}

func TestYAMLAndJSONAreRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ file, want string }{
		"JSON":            {`{"name": "x", "replicated": {"replicas": "2"}, "labels": {"a": "1"}}`, `{"name": "x", "replicated": {"replicas": 2}, "labels": {"a": "1"}}`},
		"both spellings":  {"task:\n  force_update: 3\n  container: {stopGracePeriod: 2s}\n", `{"task": {"forceUpdate": 3, "container": {"stopGracePeriod": "2s"}}}`},
		"keys like texts": {"labels: {2: \"yes\", true: \"1\", a b: c}\n", `{"labels": {"2": "yes", "true": "1", "a b": "c"}}`},
		"empty values":    {"name: x\ntask:\nlabels: ~\nupdate: null\n", `{"name": "x"}`},
		"numbers as text": {"update: {parallelism: \"2\", maxFailureRatio: 0.5}\n", `{"update": {"parallelism": 2, "maxFailureRatio": 0.5}}`},
		"an enum":         {"task: {restart: {condition: ON_FAILURE}}\n", `{"task": {"restart": {"condition": "ON_FAILURE"}}}`},
		"a payload": {
			"task:\n  generic:\n    kind: process\n    payload: {a: [1, 2.5, ~, yes, true], b: {c: 2020-01-01}, d: 1h}\n",
			`{"task": {"generic": {"kind": "process", "payload": {"a": [1, 2.5, null, "yes", true], "b": {"c": "2020-01-01"}, "d": "1h"}}}}`,
		},
		"aliases": {"update: &u {parallelism: 2}\nrollback: *u\n", `{"update": {"parallelism": 2}, "rollback": {"parallelism": 2}}`},
		"merged fields give way": {
			"task:\n  restart: {<<: &r {condition: ANY, delay: 2s}, delay: 3s}\n",
			`{"task": {"restart": {"condition": "ANY", "delay": "3s"}}}`,
		},
		"the first of several merged": {
			"update: &u {parallelism: 2}\nrollback:\n  <<: [*u, {parallelism: 3, delay: 1s}]\n",
			`{"update": {"parallelism": 2}, "rollback": {"parallelism": 2, "delay": "1s"}}`,
		},
		"one of a oneof":     {"task:\n  generic:\n  container: {image: a}\n", `{"task": {"container": {"image": "a"}}}`},
		"nothing but braces": {"{}", `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, got := &musterv1.ServiceSpec{}, &musterv1.ServiceSpec{}
			if err := protojson.Unmarshal([]byte(tt.want), want); err != nil {
				t.Fatal(err)
			}
			if _, err := specfile.Read("f", []byte(tt.file), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, want) {
				t.Errorf("read %v\nwant %v", got, want)
			}
		})
	}
}

func TestLinesFindTheNearestFieldOfTheFile(t *testing.T) {
	t.Parallel()
	lines, err := specfile.Read("f", []byte("name: x\nlabels:\n  a: b\ntask:\n  container:\n    image: a\n    args:\n    - one\n    - two\n"), &musterv1.ServiceSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"name": 1, `labels["a"]`: 3, "labels[\"b\"]": 2, "task.container.image": 6, "task.container.args[1]": 9, "task.container.args[7]": 7,
		"task.container.user": 5, "task.container.user.name": 5, "task.restart.delay": 4, "update.delay": 0, "": 0,
	} {
		if line, found := lines.Find(path); line != want || found != (want > 0) {
			t.Errorf("%q is in line %d (%v), want %d", path, line, found, want)
		}
	}
}

// TestAliasesCannotGrowWithoutBound reads a file of a few hundred bytes that stands for
// billions of values.
func TestAliasesCannotGrowWithoutBound(t *testing.T) {
	t.Parallel()
	file := "task:\n  generic:\n    kind: process\n    payload:\n      a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		from, to := string(rune('0'+i)), string(rune('1'+i))
		file += "      a" + to + ": &a" + to + " [" + strings.Repeat("*a"+from+", ", 9) + "*a" + from + "]\n"
	}
	began := time.Now()
	_, err := specfile.Read("f", []byte(file), &musterv1.ServiceSpec{})
	if err == nil {
		t.Fatalf("the file is accepted, after %v", time.Since(began))
	}
	if !strings.Contains(err.Error(), "alias") {
		t.Errorf("error is %v, want one on aliases", err)
	}
}

// FuzzRead checks that each mistake is in a line of the file, and that what was read can
// be written as JSON and is read the same.
func FuzzRead(f *testing.F) {
	for _, file := range []string{
		"name: x\nlabels: {a: b}\nreplicated: {replicas: 2}\n", "task:\n  generic: {kind: process, payload: {a: [1, {b: ~}]}}\n",
		"{\"name\": \"x\",\n\"task\" {}", "update: &u {parallelism: 2}\nrollback: {<<: *u, delay: 1s}\n", "a: *b\n", "---\n---\n", "- &a [*a]\n",
		"name: x\nname: y\n", "task: {restart: {condition: 3, delay: 1e9}}\n", "\"\\u0000\": 1", "? [a]\n: b\n", "name: !!binary aGVsbG8=\n",
	} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		spec := &musterv1.ServiceSpec{}
		lines, err := specfile.Read("f", file, spec)
		count := 1
		for _, r := range string(file) {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) { // the line breaks of YAML
				count++
			}
		}
		var wrong *specfile.Error
		if errors.As(err, &wrong) {
			for _, m := range wrong.Mistakes {
				if m.Line < 1 || m.Line > count || m.Text == "" {
					t.Errorf("mistake %+v in a file of %d lines", m, count)
				}
			}
		}
		if err != nil {
			return
		}
		if line := slices.Max(append(slices.Collect(maps.Values(lines)), 0)); line > count {
			t.Errorf("line %d in a file of %d lines", line, count)
		}
		written, err := protojson.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		again := &musterv1.ServiceSpec{}
		if _, err := specfile.Read("f", written, again); err != nil || !proto.Equal(spec, again) {
			t.Errorf("written as %s\nread again as %v, %v", written, again, err)
		}
	})
}
