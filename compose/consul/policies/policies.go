// Package policies holds what each manager daemon may do in Consul, for programs
// that put it there.
package policies

import (
	"embed"
	"fmt"
	"path"
	"regexp"
	"strings"
)

//go:embed *.hcl
var files embed.FS

// All returns the rules of each daemon, by the daemon's name. ForNodes completes them.
func All() (map[string]string, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	all := map[string]string{}
	for _, e := range entries {
		rules, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("read policies: %w", err)
		}
		all[strings.TrimSuffix(e.Name(), path.Ext(e.Name()))] = string(rules)
	}
	return all, nil
}

// placeholder stands for the name of a Consul node in the rules.
const placeholder = "CONSUL_NODE"

// rule is a rule that names a node.
var rule = regexp.MustCompile(`(?m)^\w+ "` + placeholder + `" \{\n(?:.*\n)*?\}\n`)

// ForNodes returns rules with those that name a Consul node repeated for each of the
// nodes whose agents the daemon may speak to.
func ForNodes(rules string, nodes ...string) string {
	return rule.ReplaceAllStringFunc(rules, func(one string) string {
		var all strings.Builder
		for _, node := range nodes {
			all.WriteString(strings.Replace(one, placeholder, node, 1))
		}
		return all.String()
	})
}
