package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	testneed "github.com/musterhq/muster/test/kit/need"
)

// TestTheExampleKeepsKeysSecret does what the help of reseal says, with the umask
// that most have: the file keeps its owner, and no other user can read it.
func TestTheExampleKeepsKeysSecret(t *testing.T) {
	testneed.Program(t, "openssl")
	help, _, _ := (&shell{t, "127.0.0.1:1"}).run("", "cluster", "key", "reseal", "--help")
	_, example, _ := strings.Cut(help, "Examples:\n")
	example, _, _ = strings.Cut(example, "muster cluster key reseal")
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.key")
	if err := os.WriteFile(file, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	sh := exec.CommandContext(t.Context(), "sh", "-ec", "umask 022\n"+example)
	sh.Dir = dir
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", example, err, out)
	}
	after, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || after.Mode() != before.Mode() {
		t.Errorf("the file is another one, or its mode is %v and was %v", after.Mode(), before.Mode())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Fields(string(text)); len(lines) != 2 || lines[1] != "old" {
		t.Errorf("it holds %q", text)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v is left, %v", left, err)
	}
}
