package validate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Bounds of what a published schema may cost. Schemas come from executors on
// workers, which the control plane need not trust: none may keep it busy.
const (
	maxSchemaSize  = 64 << 10
	maxSchemaDepth = 64
	// maxSchemaCost bounds the number of schemas that one value can meet, all
	// references expanded.
	maxSchemaCost = 4_000
	// maxChecks bounds that number times the number of values in a payload. A
	// check takes some 200 ns.
	maxChecks = 5_000_000
	// maxPattern bounds a compiled regular expression, in instructions, and
	// maxMatch the texts that it is tried on. Go's engine is linear in both.
	maxPattern = 2_000
	maxMatch   = 16 << 10
	// maxCached bounds the number of compiled schemas that are kept.
	maxCached = 256
)

// schemas compiles schemas once and keeps them under the digest of their text.
type schemas struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*compiled
}

// compiled is a schema that can be used, or why it cannot.
type compiled struct {
	schema *jsonschema.Schema
	cost   int
	err    error
}

func newSchemas() *schemas { return &schemas{known: map[[sha256.Size]byte]*compiled{}} }

// get returns the compiled form of a schema's text.
func (s *schemas) get(text string) *compiled {
	digest := sha256.Sum256([]byte(text))
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.known[digest]; ok {
		return c
	}
	if len(s.known) >= maxCached {
		// Which one goes does not matter: a schema compiles in less than a
		// millisecond, and a cluster has a handful of them.
		clear(s.known)
	}
	c := compile(text)
	s.known[digest] = c
	return c
}

func compile(text string) (c *compiled) {
	// The library promises no behaviour for each conceivable input.
	defer func() {
		if p := recover(); p != nil {
			c = &compiled{err: fmt.Errorf("compile: %v", p)}
		}
	}()
	if len(text) > maxSchemaSize {
		return &compiled{err: fmt.Errorf("has %d bytes; at most %d are allowed", len(text), maxSchemaSize)}
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(text)))
	if err != nil {
		return &compiled{err: fmt.Errorf("is not JSON: %w", err)}
	}
	if root, ok := doc.(map[string]any); ok {
		// Nothing refers to the schema from outside, and within it only by "#".
		delete(root, "$id")
	}
	cost, err := schemaCost(doc)
	if err != nil {
		return &compiled{err: err}
	}
	const url = "https://schema.invalid/payload.json"
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(noLoader{})
	compiler.UseRegexpEngine(boundedRegexp)
	if err := compiler.AddResource(url, doc); err != nil {
		return &compiled{err: err}
	}
	schema, err := compiler.Compile(url)
	if err != nil {
		return &compiled{err: fmt.Errorf("is not a JSON Schema: %w", err)}
	}
	return &compiled{schema: schema, cost: cost}
}

// noLoader keeps schemas from reading files or speaking to hosts.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("refers to %s; only references within the schema are allowed", url)
}

// boundedRegexp compiles a pattern with Go's engine, within bounds.
func boundedRegexp(pattern string) (jsonschema.Regexp, error) {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	if len(prog.Inst) > maxPattern {
		return nil, errors.New("pattern is too large")
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	return shortMatch{re}, nil
}

// shortMatch matches no text that is very long.
type shortMatch struct{ *regexp.Regexp }

func (m shortMatch) MatchString(s string) bool {
	return len(s) <= maxMatch && m.Regexp.MatchString(s)
}

// countValues counts the values in a payload and refuses one that is very
// deep.
func countValues(v any, depth int) (int, error) {
	if depth > maxSchemaDepth {
		return 0, fmt.Errorf("is nested deeper than %d levels", maxSchemaDepth)
	}
	n := 1
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			m, err := countValues(e, depth+1)
			if err != nil {
				return 0, err
			}
			n += m
		}
	case []any:
		for _, e := range v {
			m, err := countValues(e, depth+1)
			if err != nil {
				return 0, err
			}
			n += m
		}
	}
	return n, nil
}
