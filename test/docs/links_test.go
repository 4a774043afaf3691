// Package docs_test holds what documents say of each other: that what they link to
// is there.
package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/musterhq/muster/test/kit/need"
)

const root = "../.."

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	code    = regexp.MustCompile("(?ms)^```.*?^```$")
)

// anchors are what a document's headings are linked by.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(code.ReplaceAllString(text, ""), -1) {
		name := strings.ToLower(strings.TrimSpace(m[1]))
		name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
		all[strings.ReplaceAll(name, " ", "-")] = true
	}
	return all
}

// TestLinks follows each link of each document to another file of the repository.
func TestLinks(t *testing.T) {
	need.Program(t, "git")
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "*.md")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 10 {
		t.Fatalf("these are not all documents: %q", files)
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(string(text), ""), -1) {
			if strings.Contains(m[1], ":") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			to := filepath.Join(root, filepath.Dir(file), path)
			if path == "" {
				to = filepath.Join(root, file)
			}
			content, err := os.ReadFile(to)
			if _, there := os.Stat(to); there != nil {
				t.Errorf("%s links to %s, which is not there", file, m[1])
			} else if anchor != "" && strings.HasSuffix(to, ".md") && (err != nil || !anchors(string(content))[anchor]) {
				t.Errorf("%s links to %s: there is no such heading", file, m[1])
			}
		}
	}
}
