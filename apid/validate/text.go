package validate

import (
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Limits of what a spec may hold. They keep every record within what the store
// can commit in one transaction, with room for its neighbours.
const (
	// MaxName is the greatest length of a name, SwarmKit's.
	MaxName = 63
	// MaxLabelKey is the greatest length of a label's key.
	MaxLabelKey = 256
	// MaxLabels is the greatest size of one object's labels, keys and values
	// together.
	MaxLabels = 32 << 10
	// MaxTaskSpec is the greatest encoded size of a task spec: half of what one
	// transaction takes, for the service's record is written with it.
	MaxTaskSpec = 256 << 10
	// MaxReplicas bounds typing errors, not clusters.
	MaxReplicas = 1_000_000
	// maxList bounds lists in a spec that have no smaller bound of their own.
	maxList = 4096
)

// patterns are compiled once for each Validator.
type patterns struct {
	name, stackName, dataName, kind, capability, signal, hostname, label *regexp.Regexp
}

func newPatterns() patterns {
	return patterns{
		name:       regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`),
		stackName:  regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`),
		dataName:   regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?$`),
		kind:       regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`),
		capability: regexp.MustCompile(`^(?i:(CAP_)?[A-Z][A-Z0-9_]*)$`),
		signal:     regexp.MustCompile(`^(?i:(SIG)?[A-Z][A-Z0-9]*([+-][0-9]+)?|[1-9][0-9]?)$`),
		label:      regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?$`),
		hostname:   regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?)*$`),
	}
}

// checkName checks the name of a service.
func (p patterns) checkName(r *Report, field, name string) {
	switch {
	case name == "":
		r.Invalid(field, "is required")
	case len(name) > MaxName:
		r.Invalid(field, "has %d characters; at most %d are allowed", len(name), MaxName)
	case !p.name.MatchString(name):
		r.Invalid(field, `must consist of letters, digits, "-" and "_", and begin and end with a letter or digit`)
	}
}

func checkLabels(r *Report, field string, labels map[string]string) {
	size := 0
	for _, k := range sortedKeys(labels) {
		size += len(k) + len(labels[k])
		switch {
		case k == "":
			r.Invalid(field, "has an empty key")
		case len(k) > MaxLabelKey:
			r.Invalid(keyed(field, k), "key has %d bytes; at most %d are allowed", len(k), MaxLabelKey)
		}
	}
	if size > MaxLabels {
		r.Invalid(field, "has %d bytes; at most %d are allowed", size, MaxLabels)
	}
}

// checkText refuses what cannot be handed to a process.
func checkText(r *Report, field, s string) {
	if strings.IndexByte(s, 0) >= 0 {
		r.Invalid(field, "must not hold a NUL character")
	}
}

func checkTexts(r *Report, field string, list []string) {
	if len(list) > maxList {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(list), maxList)
		return
	}
	for i, s := range list {
		checkText(r, Indexed(field, i), s)
	}
}

// Indexed returns the path of an element of a list.
func Indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func keyed(field, key string) string { return field + "[" + strconv.Quote(short(key)) + "]" }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
