package compose

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"go.yaml.in/yaml/v3"
)

var writeDocs = flag.Bool("docs", false, "write the tables of docs/from-compose.md")

// schemaKeys walks the JSON schema of compose-go and returns the paths of its keys, as the
// table has them. Nothing is walked below a key that the table does not honour by parts.
func schemaKeys(t *testing.T, table map[string]key) map[string]bool {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal([]byte(schema.Schema), &root); err != nil {
		t.Fatal(err)
	}
	definitions := root["$defs"].(map[string]any)
	found := map[string]bool{}
	var walk func(node any, path string)
	child := func(node any, path string) {
		found[path] = true
		if row, ok := table[path]; !ok || row.effect == honoured && !row.whole {
			walk(node, path)
		}
	}
	walk = func(node any, path string) {
		n, ok := node.(map[string]any)
		if !ok {
			return
		}
		if ref, ok := n["$ref"].(string); ok {
			walk(definitions[strings.TrimPrefix(ref, "#/$defs/")], path)
		}
		for _, of := range []string{"oneOf", "anyOf", "allOf"} {
			parts, _ := n[of].([]any)
			for _, part := range parts {
				walk(part, path)
			}
		}
		walk(n["items"], path)
		properties, _ := n["properties"].(map[string]any)
		for name, p := range properties {
			child(p, below(path, name))
		}
		patterns, _ := n["patternProperties"].(map[string]any)
		for pattern, p := range patterns {
			// Names that the user chooses have a row only if there are keys below them.
			if pattern == "^x-" {
				continue
			}
			if _, ok := table[below(path, "*")]; ok {
				child(p, below(path, "*"))
				continue
			}
			before := len(found)
			walk(p, below(path, "*"))
			if len(found) != before {
				t.Errorf("%s has keys below names that the user chooses, and no row %s", path, below(path, "*"))
			}
		}
	}
	walk(root, "")
	return found
}

func TestTableHasEveryKeyOfSchema(t *testing.T) {
	table := keysByPath()
	if len(table) != len(keyTable()) {
		t.Error("a key has two rows")
	}
	found := schemaKeys(t, table)
	if len(found) < 200 {
		t.Fatalf("the schema has only %d keys; was it walked?", len(found))
	}
	for path := range found {
		if _, ok := table[path]; !ok {
			t.Errorf("the schema has a key %s, and the table has not: say whether it is honoured, refused or ignored", path)
		}
	}
	for path, row := range table {
		if !found[path] {
			t.Errorf("the table has a key %s, and the schema has not", path)
		}
		if row.effect != honoured && row.text == "" {
			t.Errorf("%s: say why it is not honoured", path)
		}
	}
}

// TestCorpusUsesEveryKey checks that each row of the table is written in some file of the
// corpus.
func TestCorpusUsesEveryKey(t *testing.T) {
	table := keysByPath()
	used := map[string]bool{}
	var walk func(n *yaml.Node, shape string)
	walk = func(n *yaml.Node, shape string) {
		switch n = deref(n); n.Kind {
		case yaml.SequenceNode:
			for _, item := range n.Content {
				walk(item, shape)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				name := n.Content[i].Value
				if name == "<<" {
					walk(n.Content[i+1], shape)
					continue
				}
				for _, path := range []string{below(shape, name), below(shape, "*")} {
					if _, ok := table[path]; ok {
						used[path] = true
						walk(n.Content[i+1], path)
						break
					}
				}
			}
		}
	}
	err := filepath.WalkDir("testdata/corpus", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(path)) {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s, err := newSource(path, path, content)
		if err != nil {
			return err
		}
		for _, root := range s.roots {
			walk(root, "")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range keyTable() {
		if !used[row.path] {
			t.Errorf("no file of the corpus has the key %s", row.path)
		}
	}
}

// document renders the table of keys for docs/from-compose.md.
func document() string {
	var b strings.Builder
	section := func(title string, rows []key) {
		fmt.Fprintf(&b, "### %s\n\n| key | effect | how, or why not |\n|---|---|---|\n", title)
		for _, row := range rows {
			name := map[effect]string{honoured: "honoured", refused: "refused", ignored: "ignored"}[row.effect]
			path := strings.TrimPrefix(strings.TrimPrefix(row.path, "services.*."), "deploy.")
			text := row.text
			if text != "" && row.effect != honoured {
				text = strings.ToUpper(text[:1]) + text[1:] + "."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", path, name, text)
		}
		b.WriteString("\n")
	}
	section("Top level", topKeys())
	section("Services: the container", containerKeys())
	section("Services: the rest", serviceKeys())
	section("Services: deploy", deployKeys())
	section("Networks, volumes, secrets and configs", objectKeys())
	return b.String()
}

// TestDocsHaveTable checks that docs/from-compose.md has the table of keys. "go test -run
// Docs ./stack/compose -docs" writes it.
func TestDocsHaveTable(t *testing.T) {
	const file, begin, end = "../../docs/from-compose.md", "<!-- keys: begin -->\n", "<!-- keys: end -->"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ended := strings.Cut(rest, end)
	if !ok || !ended {
		t.Fatalf("%s has no lines %q and %q", file, begin, end)
	}
	want := head + begin + "\n" + document() + end + tail
	if *writeDocs {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s does not have the table of keys: go test -run Docs ./stack/compose -docs", file)
	}
}
