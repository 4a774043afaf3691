package compose

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
)

// variables are what "${NAME}" stands for.
type variables map[string]string

// environ returns the variables of a list of "KEY=value".
func environ(list []string) variables {
	v := variables{}
	for _, e := range list {
		if key, value, ok := strings.Cut(e, "="); ok && key != "" {
			v[key] = value
		}
	}
	return v
}

func (v variables) lookup(key string) (string, bool) {
	value, ok := v[key]
	return value, ok
}

// budget bounds what variables may add to files, and the work to fill them in.
type budget struct {
	text, work int
}

func newBudget() *budget { return &budget{text: maxText, work: 16 << 20} }

// substitute fills in variables. It refuses text that grows too large.
func (b *budget) substitute(text string, mapping template.Mapping) (string, error) {
	if !strings.Contains(text, "$") {
		return text, nil
	}
	for line := range strings.Lines(text) {
		if b.work -= strings.Count(line, "$") * len(line); b.work < 0 {
			return "", fmt.Errorf("the files have too many variables")
		}
	}
	grown := false
	filled, err := template.SubstituteWithOptions(text, func(key string) (string, bool) {
		value, ok := mapping(key)
		if b.text -= len(value); b.text < 0 {
			grown = true
			return "", ok
		}
		return value, ok
	}, template.WithoutLogging)
	if grown {
		return "", fmt.Errorf("variables add more than %d KiB to the files", maxText>>10)
	}
	return filled, err
}

// parseEnv reads a file of variables. Values may refer to those that lookup knows, and to
// earlier ones. The parser of compose-go reads one statement at a time, so that the size
// of what it makes is bounded.
func (b *budget) parseEnv(content []byte, lookup dotenv.LookupFn) (variables, error) {
	vars := variables{}
	longest, size := 0, 0
	all := func(key string) (string, bool) {
		value, ok := lookup(key)
		if !ok {
			value, ok = vars[key]
		}
		longest = max(longest, len(value))
		return value, ok
	}
	rest := string(bytes.TrimPrefix(content, []byte("\uFEFF")))
	line := 1
	for rest != "" {
		var statement string
		statement, rest = cutStatement(rest)
		references := strings.Count(statement, "$")
		if b.work -= references * (len(statement) + 1); b.work < 0 || references*longest > maxText {
			return nil, fmt.Errorf("line %d: the file has too many variables", line)
		}
		parsed, err := dotenv.UnmarshalWithLookup(statement, all)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		for key, value := range parsed {
			vars[key] = value
			longest = max(longest, len(value))
			if size += len(value); size > maxText {
				return nil, fmt.Errorf("line %d: the values have more than %d KiB", line, maxText>>10)
			}
		}
		line += strings.Count(statement, "\n")
	}
	return vars, nil
}

// cutStatement returns the first statement of a file of variables, and what follows it. A
// statement ends with its line, or with that in which its quoted value ends.
func cutStatement(text string) (string, string) {
	end := strings.IndexByte(text, '\n') + 1
	if end == 0 {
		end = len(text)
	}
	first := text[:end]
	sign := strings.IndexAny(first, "=:")
	if trimmed := strings.TrimSpace(first); trimmed == "" || trimmed[0] == '#' || sign < 0 {
		return first, text[end:]
	}
	value := strings.TrimLeft(text[sign+1:], "\t\v\f\r ")
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return first, text[end:]
	}
	escaped := false
	for i := 1; i < len(value); i++ {
		switch {
		case escaped:
			escaped = false
		case value[i] == '\\':
			escaped = true
		case value[i] == value[0]:
			at := len(text) - len(value) + i + 1
			return text[:at], text[at:]
		}
	}
	return text, ""
}

// parseRaw reads lines of "KEY=value" as they are.
func parseRaw(content []byte, lookup dotenv.LookupFn) (variables, error) {
	vars := variables{}
	scanner := bufio.NewScanner(bytes.NewReader(content))
	scanner.Buffer(nil, maxFile+1)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimLeft(strings.TrimPrefix(scanner.Text(), "\uFEFF"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, given := strings.Cut(line, "=")
		if key == "" || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("line %d: want KEY=value", n)
		}
		if !given {
			if value, given = lookup(key); !given {
				continue
			}
		}
		vars[key] = value
	}
	return vars, scanner.Err()
}
