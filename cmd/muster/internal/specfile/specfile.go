// Package specfile reads messages of the API from files of YAML or JSON. It
// reports every mistake by the file's line, which protojson cannot do once YAML
// has been converted.
package specfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// maxNodes bounds what aliases can expand to.
const maxNodes = 200_000

// Mistake is one thing that is wrong with a file.
type Mistake struct {
	Line int
	// Path is the JSON path of the field, "" for the document.
	Path string
	Text string
}

// Error lists the mistakes of a file.
type Error struct {
	Name     string
	Mistakes []Mistake
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = fmt.Sprintf("%s:%d: ", e.Name, m.Line)
		if m.Path != "" {
			lines[i] += m.Path + ": "
		}
		lines[i] += m.Text
	}
	return strings.Join(lines, "\n")
}

// Lines holds the line of each field that a file sets, by JSON path.
type Lines map[string]int

// Find returns the line of a field, or of the nearest field around it that the
// file sets.
func (l Lines) Find(path string) (int, bool) {
	for path != "" {
		if line, ok := l[path]; ok {
			return line, true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0, false
}

// Read reads a message from a file's content. Name is what errors call the file.
func Read(name string, content []byte, message proto.Message) (Lines, error) {
	root, err := parse(name, content)
	if err != nil {
		return nil, err
	}
	r := &reader{lines: Lines{}}
	value := r.message(root, message.ProtoReflect().Descriptor(), "")
	if len(r.mistakes) > 0 {
		return nil, &Error{Name: name, Mistakes: r.mistakes}
	}
	asJSON, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("%s: convert to JSON: %w", name, err)
	}
	if err := protojson.Unmarshal(asJSON, message); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r.lines, nil
}

// parse returns the one document of a file.
func parse(name string, content []byte) (*yaml.Node, error) {
	var document, more yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	err := decoder.Decode(&document)
	switch {
	case errors.Is(err, io.EOF), err == nil && isNull(document.Content[0]):
		return nil, fmt.Errorf("%s: the file is empty", name)
	case err != nil:
		return nil, syntaxError(name, content, err)
	}
	if err := decoder.Decode(&more); err == nil {
		return nil, &Error{Name: name, Mistakes: []Mistake{{Line: more.Line, Text: "a second document begins here: want one document in a file"}}}
	}
	return document.Content[0], nil
}

// syntaxError says where the syntax is wrong. YAML's parser is vague about JSON.
func syntaxError(name string, content []byte, err error) error {
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		if wrong := json.Unmarshal(content, new(any)); wrong != nil {
			return JSONError(name, content, wrong)
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}

// JSONError returns an error of encoding/json with the line that it is about.
func JSONError(name string, content []byte, err error) error {
	var wrong *json.SyntaxError
	if !errors.As(err, &wrong) {
		return fmt.Errorf("%s: %w", name, err)
	}
	line := 1 + bytes.Count(content[:min(int(wrong.Offset), len(content))], []byte("\n"))
	return &Error{Name: name, Mistakes: []Mistake{{Line: line, Text: "invalid JSON: " + wrong.Error()}}}
}
