package payload

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// schemaCost returns how many schemas one value can meet at most: the size of
// the schema with each local reference replaced by what it refers to. It
// refuses schemas that have no such size, for they are recursive, and those
// whose references it cannot follow. What it counts is an upper bound, for it
// takes every object in the text for a schema.
func schemaCost(doc any) (int, error) {
	c := coster{doc: doc, known: map[string]int{}, open: map[string]bool{}}
	return c.cost(doc, "#", 0)
}

type coster struct {
	doc   any
	known map[string]int  // by pointer
	open  map[string]bool // pointers that are being counted
}

var errTooCostly = errors.New("is too large once its references are followed")

func (c *coster) cost(v any, at string, depth int) (int, error) {
	if depth > maxSchemaDepth {
		return 0, fmt.Errorf("is nested deeper than %d levels", maxSchemaDepth)
	}
	if n, ok := c.known[at]; ok {
		return n, nil
	}
	if c.open[at] {
		return 0, fmt.Errorf("refers to itself at %s; recursive schemas are not supported", at)
	}
	c.open[at] = true
	n, err := c.sum(v, at, depth)
	if err != nil {
		return 0, err
	}
	delete(c.open, at)
	c.known[at] = n
	return n, nil
}

func (c *coster) sum(v any, at string, depth int) (int, error) {
	n := 1
	add := func(child any, at string) error {
		m, err := c.cost(child, at, depth+1)
		if err != nil {
			return err
		}
		if n += m; n > maxSchemaCost {
			return errTooCostly
		}
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			child := v[key]
			if text, ok := child.(string); ok {
				switch key {
				case "$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor":
					return 0, fmt.Errorf("uses %s, which is not supported", key)
				case "$ref":
					target, err := resolve(c.doc, text)
					if err != nil {
						return 0, err
					}
					if err := add(target, normalPointer(text)); err != nil {
						return 0, err
					}
				}
				continue
			}
			if err := add(child, at+"/"+escapePointer(key)); err != nil {
				return 0, err
			}
		}
	case []any:
		for i, child := range v {
			if err := add(child, at+"/"+strconv.Itoa(i)); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// resolve follows a reference within the document.
func resolve(doc any, ref string) (any, error) {
	pointer, local := strings.CutPrefix(ref, "#")
	if !local || (pointer != "" && !strings.HasPrefix(pointer, "/")) {
		return nil, fmt.Errorf(`refers to %q; only references that begin with "#/" are supported`, clip(ref))
	}
	v := doc
	for _, token := range tokens(pointer) {
		var ok bool
		switch parent := v.(type) {
		case map[string]any:
			v, ok = parent[token]
		case []any:
			var i int
			var err error
			if i, err = strconv.Atoi(token); err == nil && i >= 0 && i < len(parent) {
				v, ok = parent[i], true
			}
		}
		if !ok {
			return nil, fmt.Errorf("refers to %q, which is not there", clip(ref))
		}
	}
	return v, nil
}

// tokens splits a JSON pointer that may be percent-encoded.
func tokens(pointer string) []string {
	if pointer == "" {
		return nil
	}
	list := strings.Split(pointer[1:], "/")
	for i, t := range list {
		if plain, err := url.PathUnescape(t); err == nil {
			t = plain
		}
		list[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(t)
	}
	return list
}

func normalPointer(ref string) string {
	var b strings.Builder
	b.WriteByte('#')
	for _, t := range tokens(strings.TrimPrefix(ref, "#")) {
		b.WriteByte('/')
		b.WriteString(escapePointer(t))
	}
	return b.String()
}

func escapePointer(token string) string {
	return strings.ReplaceAll(strings.ReplaceAll(token, "~", "~0"), "/", "~1")
}
