package payload

import "slices"

// refusesObjects reports whether a schema refuses every object, which is what a
// payload is. It finds what can be seen without solving the schema: true means
// that no payload passes, false that one may. References must have been followed
// once before without a cycle.
func refusesObjects(doc, schema any) bool {
	if b, ok := schema.(bool); ok {
		return !b
	}
	s, ok := schema.(map[string]any)
	if !ok {
		return false
	}
	return refusedByType(s) || refusedByMembers(s) || refusedByParts(doc, s)
}

// refusedByType looks at the keywords that say what the value itself must be.
func refusedByType(s map[string]any) bool {
	switch t := s["type"].(type) {
	case string:
		if t != "object" {
			return true
		}
	case []any:
		if !anyOf(t, func(v any) bool { return v == "object" }) {
			return true
		}
	}
	isObject := func(v any) bool { _, ok := v.(map[string]any); return ok }
	if c, ok := s["const"]; ok && !isObject(c) {
		return true
	}
	if list, ok := s["enum"].([]any); ok && !anyOf(list, isObject) {
		return true
	}
	return false
}

// refusedByMembers looks for a property that is required, and can never be there.
func refusedByMembers(s map[string]any) bool {
	required, _ := s["required"].([]any)
	properties, _ := s["properties"].(map[string]any)
	for _, r := range required {
		name, ok := r.(string)
		if !ok {
			continue
		}
		p, declared := properties[name]
		if declared && refusesAnything(p) {
			return true
		}
		if !declared && s["additionalProperties"] == false && s["patternProperties"] == nil {
			return true
		}
	}
	return false
}

// refusedByParts looks into the schemas that a schema is combined of.
func refusedByParts(doc any, s map[string]any) bool {
	if ref, ok := s["$ref"].(string); ok {
		if target, err := resolve(doc, ref); err == nil && refusesObjects(doc, target) {
			return true
		}
	}
	if not, ok := s["not"]; ok && acceptsAll(doc, not) {
		return true
	}
	refuses := func(v any) bool { return refusesObjects(doc, v) }
	if list, ok := s["allOf"].([]any); ok && anyOf(list, refuses) {
		return true
	}
	for _, key := range []string{"anyOf", "oneOf"} {
		if list, ok := s[key].([]any); ok && len(list) > 0 && !anyOf(list, func(v any) bool { return !refuses(v) }) {
			return true
		}
	}
	return false
}

// refusesAnything reports whether a schema is seen to refuse values of every type.
func refusesAnything(schema any) bool {
	if s, ok := schema.(map[string]any); ok {
		not, ok := s["not"]
		empty, isObject := not.(map[string]any)
		return ok && (not == true || isObject && len(empty) == 0)
	}
	return schema == false
}

// acceptsAll reports whether a schema is seen to accept every object.
func acceptsAll(doc, schema any) bool {
	if schema == true {
		return true
	}
	s, ok := schema.(map[string]any)
	if !ok {
		return false
	}
	for key, v := range s {
		switch key {
		case "title", "description", "$comment", "$defs", "definitions", "default", "examples", "$schema":
		case "type":
			if v != "object" {
				return false
			}
		case "not":
			if !refusesObjects(doc, v) {
				return false
			}
		case "allOf":
			list, ok := v.([]any)
			if !ok || anyOf(list, func(v any) bool { return !acceptsAll(doc, v) }) {
				return false
			}
		case "anyOf":
			list, ok := v.([]any)
			if !ok || !anyOf(list, func(v any) bool { return acceptsAll(doc, v) }) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func anyOf(list []any, holds func(any) bool) bool { return slices.ContainsFunc(list, holds) }
