package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestExamplesOfServicesPage creates every spec of docs/services.md and docs/groups.md with
// the real program, and writes what it reads back.
func TestExamplesOfServicesPage(t *testing.T) {
	t.Parallel()
	examples := append(examplesOf(t, "services.md", 4), examplesOf(t, "groups.md", 1)...)
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	for i, example := range examples {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("example%d.yaml", i+1))
		if err := os.WriteFile(path, example[1], 0o600); err != nil {
			t.Fatal(err)
		}
		name := string(regexp.MustCompile(`(?m)^name: (.*)$`).FindSubmatch(example[1])[1])
		s.ok(t, "service", "create", "--detach", "--file", path)
		back := filepath.Join(t.TempDir(), "back.json")
		if err := os.WriteFile(back, []byte(s.ok(t, "service", "inspect", name, "--format", "{{json .spec}}")), 0o600); err != nil {
			t.Fatal(err)
		}
		s.ok(t, "service", "update", "--detach", "--file", back, name)
		s.ok(t, "service", "update", "--detach", "--file", path, name)
		s.ok(t, "service", "rm", name)
	}
	s.awaitNoTasks(t)
}

// examplesOf returns the YAML examples of a page of the documentation.
func examplesOf(t *testing.T, page string, least int) [][][]byte {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(text, -1)
	if len(examples) < least {
		t.Fatalf("docs/%s has %d examples, want at least %d", page, len(examples), least)
	}
	return examples
}
