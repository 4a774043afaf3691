package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Filters are what a list is restricted by: values by name.
type Filters map[string][]string

// ReadFilters reads the filters of a request, of which only the given ones may be. They are
// JSON, in the form {"name":{"a":true}} or in the older one, {"name":["a"]}.
func ReadFilters(r *http.Request, allowed ...string) (Filters, error) {
	text := r.URL.Query().Get("filters")
	out := Filters{}
	if text == "" {
		return out, nil
	}
	var set map[string]map[string]bool
	if err := json.Unmarshal([]byte(text), &set); err == nil {
		for name, values := range set {
			// Docker does not look at the value either.
			out[name] = slices.Sorted(maps.Keys(values))
		}
	} else if err := json.Unmarshal([]byte(text), (*map[string][]string)(&out)); err != nil {
		return nil, Errorf(http.StatusBadRequest, "invalid filter")
	}
	for _, name := range slices.Sorted(maps.Keys(out)) {
		if !slices.Contains(allowed, name) {
			return nil, Errorf(http.StatusBadRequest, "invalid filter '%s'", name)
		}
	}
	return out, nil
}

// Labels returns the values of a filter as the control API takes them. A value that is
// empty means that the label is there.
func (f Filters) Labels(name string) []string {
	var out []string
	for _, v := range f[name] {
		out = append(out, strings.TrimSuffix(v, "="))
	}
	return out
}

// MatchLabels tells whether labels pass a filter.
func (f Filters) MatchLabels(name string, labels map[string]string) bool {
	for _, want := range f[name] {
		key, value, _ := strings.Cut(want, "=")
		if have, ok := labels[key]; !ok || value != "" && have != value {
			return false
		}
	}
	return true
}

// Flag reads a filter that is true or false; absent is nil.
func (f Filters) Flag(name string) (*bool, error) {
	values := f[name]
	if len(values) == 0 {
		return nil, nil
	}
	yes := false
	for _, v := range values {
		switch strings.ToLower(v) {
		case "1", "true":
			yes = true
		case "0", "false":
		default:
			return nil, Errorf(http.StatusBadRequest, "invalid filter '%s=%s'", name, v)
		}
	}
	return &yes, nil
}
