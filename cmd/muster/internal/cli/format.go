package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/musterhq/muster/internal/terminal"
)

// output is the --format of commands that show objects.
type output struct {
	format string
	quiet  bool
}

func (o *output) addFlags(cmd *cobra.Command, quiet bool) {
	cmd.Flags().StringVar(&o.format, "format", "table", `"table", "json" (one document), or a Go template over an object's JSON: '{{.spec.name}} {{.id}}'`)
	if quiet {
		cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	}
}

// addInspectFlags adds the flag to a command that shows objects whole, unless told
// otherwise.
func (o *output) addInspectFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.format, "format", "json", `"json" (one document), "table", or a Go template over an object's JSON: '{{.spec.name}} {{.id}}'`)
}

// table is rows for people.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (c *CLI) printTable(t *table) error {
	w := tabwriter.NewWriter(c.Out, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			row[i] = printable(cell)
		}
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return fmt.Errorf("print table: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print table: %w", err)
	}
	return nil
}

// printable keeps what others wrote (an error of a task's, a label) from moving
// the terminal's cursor.
func printable(s string) string { return terminal.Line(s) }

// show prints objects as asked: rows for people, or the objects themselves.
func show[M proto.Message](c *CLI, o *output, objects []M, id func(M) string, rows func() *table) error {
	if o.quiet {
		for _, m := range objects {
			c.printf("%s\n", id(m))
		}
		return nil
	}
	switch o.format {
	case "table":
		return c.printTable(rows())
	case "json":
		all := make([]json.RawMessage, len(objects))
		for i, m := range objects {
			b, err := toJSON(m)
			if err != nil {
				return err
			}
			all[i] = b
		}
		return c.printJSON(all)
	}
	var none M
	t, fill, err := parseFormat(o.format, none.ProtoReflect().Descriptor())
	if err != nil {
		return err
	}
	for _, m := range objects {
		b, err := toJSON(m)
		if err != nil {
			return err
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("read object's JSON: %w", err)
		}
		fill(v)
		var line bytes.Buffer
		if err := t.Execute(&line, v); err != nil {
			return usage("--format: %w", err)
		}
		text := line.String()
		if c.OutTerminal {
			// A program gets the text as it is; a terminal would act on it.
			text = terminal.Text(text)
		}
		c.printf("%s\n", text)
	}
	return nil
}

// getAll gets the objects that are named, one after the other.
func getAll[M proto.Message](names []string, get func(name string) (M, error)) ([]M, error) {
	var all []M
	for _, name := range names {
		m, err := get(name)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func toJSON(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write object as JSON: %w", err)
	}
	return terminal.JSON(b), nil
}

// printJSON indents what protojson writes, whose own spacing is random on
// purpose.
func (c *CLI) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	c.printf("%s\n", b)
	return nil
}

func ago(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	text := units.HumanDuration(time.Since(at.AsTime())) + " ago"
	return strings.ToLower(text[:1]) + text[1:]
}

// short cuts an id to what is shown in tables.
func short(id string, whole bool) string {
	if !whole && len(id) > 12 {
		return id[:12]
	}
	return id
}

// title writes "RUNNING" as "Running".
func title(s string) string {
	if s == "" {
		return ""
	}
	return s[:1] + strings.ToLower(s[1:])
}

func cut(s string, most int, whole bool) string {
	if r := []rune(s); !whole && len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
