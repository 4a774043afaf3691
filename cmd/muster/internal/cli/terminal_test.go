package cli

import (
	"bytes"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestNoTerminalActsOnOutput prints a task whose error a program made up, in every
// format. A program that reads a template's output gets it as it is.
func TestNoTerminalActsOnOutput(t *testing.T) {
	const evil = "\x1b[2J\u009b31m\x7f"
	task := &musterv1.Task{Id: "t", Status: &musterv1.TaskStatus{Error: evil}}
	for name, tt := range map[string]struct {
		format   string
		terminal bool
		want     string
	}{
		"table":                     {format: "table", terminal: true, want: "[2J31m"},
		"JSON":                      {format: "json", want: `"\u001b[2J\u009b31m\u007f"`},
		"template":                  {format: "{{.status.error}}", terminal: true, want: "[2J31m\n"},
		"template, to a program":    {format: "{{.status.error}}", want: evil + "\n"},
		"JSON of a template's part": {format: "{{json .status.error}}", terminal: true, want: "[2J31m"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c := &CLI{Out: &out, OutTerminal: tt.terminal}
			err := show(c, &output{format: tt.format}, []*musterv1.Task{task}, (*musterv1.Task).GetId, func() *table {
				return &table{header: []string{"ERROR"}, rows: [][]string{{task.Status.Error}}}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := out.String(); !strings.Contains(got, tt.want) || tt.want != evil+"\n" && strings.ContainsAny(got, "\x1b\u009b\x7f") {
				t.Errorf("output is %q, want it to hold %q", got, tt.want)
			}
		})
	}
}
