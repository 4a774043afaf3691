// Package payload checks payloads of generic runtimes against the JSON Schemas
// that executors publish. The API server refuses with it what no node accepts,
// the scheduler avoids nodes that refuse, and the dispatcher reports schemas that
// cannot be used. Schemas come from workers, which the control plane need not
// trust, so all that they can cost is bounded.
package payload

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/musterhq/muster/internal/nodereport"
)

// Bounds of what a published schema may cost. [nodereport.MaxSchema] bounds its text.
const (
	maxSchemaDepth = 64
	// maxSchemaCost bounds the number of schemas that one value can meet, all
	// references expanded.
	maxSchemaCost = 4_000
	// maxChecks bounds that number times the number of values in a payload. A
	// check takes some 200 ns. The scheduler makes one check for each schema and
	// spec, and places nothing meanwhile.
	maxChecks = 1_000_000
	// maxPattern bounds a compiled regular expression, in instructions, and
	// maxMatch the texts that it is tried on. Go's engine is linear in both.
	maxPattern = 2_000
	maxMatch   = 16 << 10
	// maxCached bounds the number of compiled schemas that are kept.
	maxCached = 256
)

// ErrRefusesAll is why a schema that accepts no object at all cannot be used.
var ErrRefusesAll = errors.New("refuses every payload")

// Schema is a compiled schema, or the reason why its text cannot be used.
type Schema struct {
	schema *jsonschema.Schema
	cost   int
	err    error
}

// Err returns why the schema cannot be used, nil if it can.
func (s *Schema) Err() error { return s.err }

// Schemas compiles schemas once and keeps them under the digest of their text.
// It may be used by many goroutines.
type Schemas struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*Schema
}

// NewSchemas returns an empty cache.
func NewSchemas() *Schemas { return &Schemas{known: map[[sha256.Size]byte]*Schema{}} }

// Get returns the compiled form of a schema's text.
func (s *Schemas) Get(text string) *Schema {
	digest := sha256.Sum256([]byte(text))
	s.mu.Lock()
	c, ok := s.known[digest]
	s.mu.Unlock()
	if ok {
		return c
	}
	// Others are not kept waiting while a hostile schema compiles.
	c = Compile(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxCached {
		// Which one goes does not matter: a schema compiles in less than a
		// millisecond, and a cluster has a handful of them.
		clear(s.known)
	}
	s.known[digest] = c
	return c
}

// Compile compiles the text of a schema.
func Compile(text string) (s *Schema) {
	// The library promises no behaviour for each conceivable input.
	defer func() {
		if p := recover(); p != nil {
			s = &Schema{err: fmt.Errorf("cannot be compiled: %v", p)}
		}
	}()
	if len(text) > nodereport.MaxSchema {
		return &Schema{err: fmt.Errorf("has %d bytes; at most %d are allowed", len(text), nodereport.MaxSchema)}
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(text)))
	if err != nil {
		return &Schema{err: fmt.Errorf("is not JSON: %w", err)}
	}
	if root, ok := doc.(map[string]any); ok {
		// Nothing refers to the schema from outside, and within it only by "#".
		delete(root, "$id")
	}
	cost, err := schemaCost(doc)
	if err != nil {
		return &Schema{err: err}
	}
	const url = "https://schema.invalid/payload.json"
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(noLoader{})
	compiler.UseRegexpEngine(boundedRegexp)
	if err := compiler.AddResource(url, doc); err != nil {
		return &Schema{err: err}
	}
	schema, err := compiler.Compile(url)
	if err != nil {
		return &Schema{err: fmt.Errorf("is not a JSON Schema: %w", err)}
	}
	if refusesObjects(doc, doc) {
		return &Schema{err: ErrRefusesAll}
	}
	return &Schema{schema: schema, cost: cost}
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
