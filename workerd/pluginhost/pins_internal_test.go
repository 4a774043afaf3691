package pluginhost

import (
	"path"
	"strings"
	"testing"
)

// FuzzReadPins: a file of checksums allows no file but those whose sums are in it.
func FuzzReadPins(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	for _, s := range []string{sum + "  muster-executor-null\n", sum + " *plugins/muster-executor-null\n# x\n\n", strings.ToUpper(sum) + "  null", sum, "x  muster-executor-null", sum + "  ../..", sum + "  muster-executor-"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		listed, err := readPins(content)
		if err != nil {
			return
		}
		for name, sums := range listed {
			if !validName(name) || path.Base(name) != name {
				t.Errorf("%q pins a plugin called %q", content, name)
			}
			for _, s := range sums {
				if !isChecksum(s) || !strings.Contains(strings.ToLower(string(content)), s) {
					t.Errorf("%q has a sum %q", content, s)
				}
			}
		}
		p := pins{listed: listed, strict: true}
		if p.allow("null", "file", strings.Repeat("ff", 32)) == nil && !strings.Contains(strings.ToLower(string(content)), strings.Repeat("ff", 32)) {
			t.Errorf("%q allows what it does not name", content)
		}
	})
}
