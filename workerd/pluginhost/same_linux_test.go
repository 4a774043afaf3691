package pluginhost_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// copyProgram copies a program, and returns its checksum.
func copyProgram(t *testing.T, from, to string) string {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o700); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// TestWhatWasLookedAtIsStarted replaces a program between the look at it and its
// start.
func TestWhatWasLookedAtIsStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	programs := map[string]string{}
	for _, name := range []string{"true", "false"} {
		from, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		programs[name] = filepath.Join(dir, name)
		copyProgram(t, from, programs[name])
	}
	path := programs["true"]
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := os.Rename(programs["false"], path); err != nil {
		t.Fatal(err)
	}
	if err := exec.CommandContext(t.Context(), path).Run(); err == nil {
		t.Fatal("the file is not replaced")
	}
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Path = pluginhost.SamePath(file)
	if err := cmd.Run(); err != nil {
		t.Errorf("started was %v, which is not what was looked at", err)
	}
	text, err := os.Open(script(t, dir, "script", "good"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = text.Close() }()
	if from := pluginhost.SamePath(text); from != "" {
		t.Errorf("a script is started from %s, which its interpreter cannot open", from)
	}
}

// TestPinnedProgram starts a program that is pinned, and no script.
func TestPinnedProgram(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sum := copyProgram(t, self, filepath.Join(dir, pluginhost.Prefix+"pinned"))
	h, _, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Dirs, cfg.Checksums = []string{dir}, map[string]string{"pinned": sum}
	})
	all := h.Describe(deadline(t))
	if len(all) != 1 || all[0].Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY || all[0].Description.GetChecksum() != sum {
		t.Errorf("the pinned program is described as %v", all)
	}
}
