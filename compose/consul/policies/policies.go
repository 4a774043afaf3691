// Package policies holds what each manager daemon may do in Consul, for programs
// that put it there.
package policies

import (
	"embed"
	"fmt"
	"path"
	"strings"
)

//go:embed *.hcl
var files embed.FS

// All returns the rules of each daemon, by the daemon's name.
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
