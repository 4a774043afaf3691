package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of what Load reads. They are far above what people write, and low enough that a
// hostile file is refused before it takes time or memory.
const (
	// maxFile bounds a compose file or an env file, in bytes.
	maxFile = 1 << 20
	// maxFiles bounds the compose files of a stack, included and extended ones too.
	maxFiles = 100
	// maxValues bounds the values of all compose files after aliases are expanded and
	// extended services copied.
	maxValues = 50_000
	// maxDepth bounds how deep values are nested.
	maxDepth = 64
	// maxChain bounds how many services extend one another.
	maxChain = 16
	// maxText bounds the text that variables add to the files.
	maxText = 4 << 20
	// maxPorts bounds the ports of one entry of "ports".
	maxPorts = 256
	// maxSecret and maxConfig bound the data of secrets and configs, as the API does.
	maxSecret = 500 << 10
	maxConfig = 1000 << 10
)

// source is a compose file.
type source struct {
	// name is how the user knows the file.
	name    string
	path    string
	content []byte
	// vars are those that are filled in.
	vars variables
	// roots are the documents.
	roots []*yaml.Node
}

// newSource parses a compose file far enough to find its lines and to bound it.
func newSource(name, path string, content []byte) (*source, error) {
	s := &source{name: name, path: path, content: content}
	for decoder := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
			s.roots = append(s.roots, doc.Content[0])
		}
	}
}

// size counts the values of a file after aliases are expanded.
func (s *source) size() (int, error) {
	total := 0
	known := map[*yaml.Node]int{}
	for _, root := range s.roots {
		n, err := s.count(root, 0, known)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// underWay marks a node whose values are being counted.
const underWay = -1

func (s *source) count(n *yaml.Node, depth int, known map[*yaml.Node]int) (int, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("%s:%d: values are nested more than %d deep", s.name, n.Line, maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch total, again := known[n]; {
	case again && total == underWay:
		return 0, fmt.Errorf("%s:%d: a value contains itself", s.name, n.Line)
	case again:
		return total, nil
	}
	known[n] = underWay
	total := 1
	for _, c := range n.Content {
		more, err := s.count(c, depth+1, known)
		if err != nil {
			return 0, err
		}
		if total += more; total > maxValues {
			return 0, fmt.Errorf("%s:%d: the file expands to more than %d values", s.name, n.Line, maxValues)
		}
	}
	known[n] = total
	return total, nil
}

// deref follows an alias.
func deref(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// entry returns the key and the value of an entry of a mapping, also of one that is
// merged into it. Newer than an entry of a merged mapping is one of the mapping itself.
func entry(n *yaml.Node, key string) (*yaml.Node, *yaml.Node) {
	n = deref(n)
	if n == nil {
		return nil, nil
	}
	var merged []*yaml.Node
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			switch k := n.Content[i]; k.Value {
			case key:
				return k, deref(n.Content[i+1])
			case "<<":
				merged = append(merged, n.Content[i+1])
			}
		}
	case yaml.SequenceNode:
		merged = n.Content
	}
	for _, m := range merged {
		if k, v := entry(m, key); k != nil {
			return k, v
		}
	}
	return nil, nil
}

// find returns the line of a key. Elements of a list are numbers in the path; if the list
// is a short form, the element that contains the hint is meant.
func (s *source) find(path []string, hint string) (int, bool) {
	for _, root := range slices.Backward(s.roots) {
		if line, ok := findIn(root, path, hint); ok {
			return line, true
		}
	}
	return 0, false
}

func findIn(n *yaml.Node, path []string, hint string) (int, bool) {
	n = deref(n)
	if n == nil || len(path) == 0 {
		return 0, false
	}
	if n.Kind == yaml.SequenceNode {
		return findItem(n, path, hint)
	}
	k, v := entry(n, path[0])
	if k == nil {
		return 0, false
	}
	if len(path) == 1 {
		return k.Line, true
	}
	return findIn(v, path[1:], hint)
}

// findItem returns the line of an element of a list, or of a key in one.
func findItem(n *yaml.Node, path []string, hint string) (int, bool) {
	items := make([]*yaml.Node, 0, len(n.Content))
	for i, c := range n.Content {
		if fmt.Sprint(i) == path[0] {
			items = slices.Insert(items, 0, deref(c))
			continue
		}
		items = append(items, deref(c))
	}
	for _, item := range items {
		if item.Kind == yaml.ScalarNode && hint != "" && strings.Contains(item.Value, hint) {
			return item.Line, true
		}
		if len(path) > 1 {
			if line, ok := findIn(item, path[1:], hint); ok {
				return line, true
			}
		}
	}
	if len(path) == 1 && len(items) > 0 && hint == "" {
		return items[0].Line, true
	}
	return 0, false
}

// readFile reads a regular file up to a size.
func readFile(path string, most int) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f, path, most)
}

func readAll(r io.Reader, name string, most int) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(content) > most {
		return nil, fmt.Errorf("%s has more than %d KiB", name, most>>10)
	}
	return content, nil
}

// within reports whether a path, with its symbolic links followed, lies in a directory.
// A path that does not exist is taken as it is written.
func within(dir, path string) bool {
	real := func(p string) string {
		if followed, err := filepath.EvalSymlinks(p); err == nil {
			return followed
		}
		return filepath.Clean(p)
	}
	rel, err := filepath.Rel(real(dir), real(path))
	return err == nil && filepath.IsLocal(rel)
}
