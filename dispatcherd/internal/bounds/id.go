// Package bounds limits what callers of a dispatcher may say. Every scheduler and
// every API server keeps in memory what workers report, so no worker may report
// more than it needs.
package bounds

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/musterhq/muster/api/nodeid"
)

// MaxID is the greatest length of an id that a worker chooses.
const MaxID = 64

// CheckID returns an error that names the field if an id is not valid.
func CheckID(field, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s is empty", field)
	case len(id) > MaxID:
		return fmt.Errorf("%s has %d characters, at most %d are allowed", field, len(id), MaxID)
	case strings.ContainsFunc(id, func(r rune) bool { return r == '/' || !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("%s %q contains a slash, a space or an unprintable character", field, id)
	default:
		return nil
	}
}

// CheckNodeID returns an error that names the field if an id cannot be that of a node.
func CheckNodeID(field, id string) error {
	if err := CheckID(field, id); err != nil {
		return err
	}
	if err := nodeid.Check(id); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

// Clip shortens a text to at most n bytes. It does not cut a character in two.
func Clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
