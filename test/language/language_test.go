package language

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// exceptions are the folders and files that need such words, and how many lines of
// each have one. A number may only fall.
var exceptions = map[string]int{
	"plugins/process/behaviour_test.go": 2, // the user called nobody
}

// generated are files that others or programs write, and this list of words.
var generated = regexp.MustCompile(`^third_party/|^test/language/|\.pb\.go$|\.pb\.gw\.go$`)

func git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = root
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// exception returns the longest entry of exceptions that covers a file.
func exception(file string) string {
	for folder := file; folder != "."; folder = filepath.Dir(folder) {
		if _, ok := exceptions[folder]; ok {
			return folder
		}
	}
	return ""
}

func read(t *testing.T) words {
	t.Helper()
	ws, err := readWords()
	if err != nil {
		t.Fatal(err)
	}
	if len(ws) == 0 {
		t.Fatal("words.txt has no words")
	}
	return ws
}

func TestTextAvoidsUnclearWords(t *testing.T) {
	ws := read(t)
	counts := map[string]int{}
	lines := map[string][]string{}
	for file := range strings.Lines(git(t, "ls-files", "*.go", "*.proto", "*.md")) {
		file = strings.TrimSpace(file)
		if generated.MatchString(file) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root, file))
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			found := ws.check(line)
			if len(found) == 0 {
				continue
			}
			folder := exception(file)
			if folder == "" {
				t.Errorf("%s:%d: %s", file, number, strings.Join(found, "; "))
				continue
			}
			counts[folder]++
			lines[folder] = append(lines[folder], file+": "+strings.TrimSpace(line))
		}
	}
	for folder, most := range exceptions {
		switch n := counts[folder]; {
		case n > most:
			t.Errorf("%s has %d lines with unclear words, and had %d: see docs/development.md\n%s", folder, n, most, strings.Join(lines[folder], "\n"))
		case n < most:
			t.Logf("%s has %d lines with unclear words: lower its number in exceptions from %d", folder, n, most)
		}
	}
}

func TestCheckNamesTheWordAndWhatToWrite(t *testing.T) {
	content, err := os.ReadFile("testdata/lines.txt")
	if err != nil {
		t.Fatal(err)
	}
	ws := read(t)
	for text := range strings.Lines(string(content)) {
		line, want, ok := strings.Cut(strings.TrimSuffix(text, "\n"), "\t")
		if !ok {
			t.Fatalf("no tab in %q", text)
		}
		if got := strings.Join(ws.check(line), "; "); got != want {
			t.Errorf("check(%q) = %q, want %q", line, got, want)
		}
	}
}

func TestCheckFindsEachListedPhrase(t *testing.T) {
	ws := read(t)
	for _, phrases := range ws {
		for _, p := range phrases {
			for _, text := range []string{p.text, strings.ToUpper(p.text), "// (" + p.text + ")"} {
				if got, want := ws.check(text), []string{`"` + p.text + `": write ` + p.instead}; !slices.Equal(got, want) {
					t.Errorf("check(%q) = %q, want %q", text, got, want)
				}
			}
			for _, text := range []string{"x" + p.text, p.text + "x", p.text + "_", strings.ReplaceAll(p.text, " ", "-") + "0"} {
				if got := ws.check(text); got != nil {
					t.Errorf("check(%q) = %q, want nothing", text, got)
				}
			}
		}
	}
}

// since is the last commit from before the rule for subjects.
const since = "f93f35b"

var subject = regexp.MustCompile(`^[a-z0-9_/.,{}-]+: \S`)

// badSubject says what is wrong with the subject of a commit, if anything.
func badSubject(s string) string {
	switch {
	case len(s) > 72:
		return "longer than 72 characters"
	case !subject.MatchString(s):
		return `not of the form "package: summary"`
	}
	return ""
}

func TestSubjectsOfCommits(t *testing.T) {
	revisions := []string{"-1"}
	check := exec.Command("git", "cat-file", "-e", since+"^{commit}")
	check.Dir = root
	if check.Run() == nil { // otherwise the clone is shallow
		revisions = []string{since + "..HEAD"}
	}
	for line := range strings.Lines(git(t, append([]string{"log", "--no-merges", "--format=%h %s"}, revisions...)...)) {
		hash, s, _ := strings.Cut(strings.TrimSpace(line), " ")
		if wrong := badSubject(s); wrong != "" {
			t.Errorf("commit %s: subject %q is %s", hash, s, wrong)
		}
	}
}

func TestBadSubjects(t *testing.T) {
	for s, ok := range map[string]bool{
		"store: read pages once":               true,
		"charts,compose: name the port":        true,
		"Read pages once":                      false,
		"store:read pages once":                false,
		"store: " + strings.Repeat("x", 65):    true,
		"store: " + strings.Repeat("x", 66):    false,
		"store, kv: have one space in between": false,
	} {
		if got := badSubject(s); (got == "") != ok {
			t.Errorf("badSubject(%q) = %q, want ok: %v", s, got, ok)
		}
	}
}
