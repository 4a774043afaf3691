package compose

import (
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/consts"
	"go.yaml.in/yaml/v3"
)

// effect is what a key of a compose file does.
type effect int

const (
	// honoured keys become a part of the stack.
	honoured effect = iota
	// refused keys ask for something that Muster cannot do.
	refused
	// ignored keys have no effect on a cluster, on purpose.
	ignored
)

// key is a row of the table of keys. The rows are in the order of the documentation, which
// is checked against them.
type key struct {
	// path is the key's path; "*" is a name that the user chooses. Elements of lists have
	// the path of their list.
	path   string
	effect effect
	// text says how the key is honoured, or why it is not and what to do instead.
	text string
	// accepted are values of a refused key that ask for nothing.
	accepted []string
	// whole says that the text is about everything below the key too.
	whole bool
}

// keyTable has every key of the compose specification.
func keyTable() []key {
	return slices.Concat(topKeys(), containerKeys(), serviceKeys(), deployKeys(), objectKeys())
}

// keysByPath returns the table by path.
func keysByPath() map[string]key {
	table := map[string]key{}
	for _, k := range keyTable() {
		table[k.path] = k
	}
	return table
}

// checker compares files with the table.
type checker struct {
	*report
	table  map[string]key
	closed map[string]bool
}

func newChecker(r *report) checker {
	table := keysByPath()
	return checker{report: r, table: table, closed: closed(table)}
}

// row returns the row of a name. A name that begins with "x-" is an extension only where
// users do not choose the names.
func (c checker) row(shape, name string) (key, bool) {
	if row, ok := c.table[below(shape, name)]; ok {
		return row, true
	}
	row, ok := c.table[below(shape, "*")]
	return row, ok
}

// check reports what a value asks for that is refused or ignored. The shape is the path in
// the table.
func (c checker) check(value any, path []string, shape string) {
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			at := append(slices.Clip(path), name)
			row, ok := c.row(shape, name)
			switch {
			case ok && name != consts.Extensions:
				c.entry(row, v[name], at)
			case strings.HasPrefix(name, "x-") && !c.closed[shape]:
				// The parser takes it out of the mapping.
				c.invalid(at, "", "names in a mapping must not begin with \"x-\": write a list of NAME=VALUE")
			}
		}
	case []any:
		for i, item := range v {
			c.check(item, append(slices.Clip(path), number(i)), shape)
		}
	}
}

func (c checker) entry(row key, value any, path []string) {
	switch {
	case row.effect == honoured && !row.whole:
		c.check(value, path, row.path)
	case row.effect == honoured || !asks(value, row.accepted):
	case row.effect == refused:
		c.unsupported(path, "", row.text)
	default:
		c.note(path, row.text)
	}
}

// unknown reports keys that the table does not have.
func (c checker) unknown(s *source, n *yaml.Node, path []string, shape string) {
	switch n = deref(n); n.Kind {
	case yaml.SequenceNode:
		for _, item := range n.Content {
			c.unknown(s, item, path, shape)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			name, value := n.Content[i], n.Content[i+1]
			if name.Value == "<<" {
				c.unknown(s, value, path, shape)
				continue
			}
			at := append(slices.Clip(path), name.Value)
			row, ok := c.row(shape, name.Value)
			switch {
			case ok && row.effect == honoured && !row.whole:
				c.unknown(s, value, at, row.path)
			case !ok && c.closed[shape] && !strings.HasPrefix(name.Value, "x-"):
				add(&c.errors, Problem{File: s.name, Line: name.Line, Key: strings.Join(at, "."), Reason: "unknown key"})
			}
		}
	}
}

// closed returns the paths below which only the keys of the table are allowed.
func closed(table map[string]key) map[string]bool {
	paths := map[string]bool{"": true}
	for path := range table {
		if i := strings.LastIndexByte(path, '.'); i >= 0 {
			paths[path[:i]] = true
		}
	}
	return paths
}

func below(shape, name string) string {
	if shape == "" {
		return name
	}
	return shape + "." + name
}

// asks reports whether a value asks for anything.
func asks(value any, accepted []string) bool {
	switch v := value.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != "" && !slices.Contains(accepted, v)
	case int:
		return v != 0
	case float64:
		return v != 0
	case []any:
		return slices.ContainsFunc(v, func(item any) bool { return asks(item, accepted) })
	case map[string]any:
		return len(v) > 0
	}
	return true
}
