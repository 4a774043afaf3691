package compose

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// portRange is a range of ports, in a short form or by itself.
var portRange = regexp.MustCompile(`([0-9]{1,9})-([0-9]{1,9})`)

// reference is a variable without a default value, or "$$" for a dollar sign.
var reference = regexp.MustCompile(`\$\$|\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// unset returns the variables of a text that have neither a value nor a default.
func unset(text string, vars variables) []string {
	var names []string
	for _, m := range reference.FindAllStringSubmatch(text, 16) {
		name := m[1] + m[2]
		if _, ok := vars[name]; name != "" && !ok {
			names = append(names, name)
		}
	}
	return names
}

// checkRanges bounds ranges of ports, which compose-go makes lists of.
func (x *index) checkRanges(s *source, vars variables) error {
	for _, root := range s.roots {
		_, services := entry(root, "services")
		for _, service := range keys(services) {
			_, body := entry(services, service)
			for _, key := range []string{"ports", "expose"} {
				_, list := entry(body, key)
				for _, n := range elements(list) {
					if err := x.checkRange(s, n, vars); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func (x *index) checkRange(s *source, n *yaml.Node, vars variables) error {
	if n.Kind != yaml.ScalarNode {
		return nil
	}
	text, err := x.fill(s, n, vars)
	if err != nil {
		return err
	}
	for _, m := range portRange.FindAllStringSubmatch(text, -1) {
		first, _ := strconv.Atoi(m[1])
		last, _ := strconv.Atoi(m[2])
		if last-first >= maxPorts {
			return fmt.Errorf("%s:%d: ports: %s has more than %d ports", s.name, n.Line, strings.TrimSpace(m[0]), maxPorts)
		}
		if err := x.charge(s.name, 8*max(last-first, 0)); err != nil {
			return err
		}
	}
	return nil
}

// fill adds the variables of a file to those that are known; known ones win.
func (v variables) fill(content []byte, b *budget) error {
	more, err := b.parseEnv(content, v.lookup)
	if err != nil {
		return err
	}
	for key, value := range more {
		if _, known := v[key]; !known {
			v[key] = value
		}
	}
	return nil
}
