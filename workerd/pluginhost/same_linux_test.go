package pluginhost_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// atExecFn is the entry of a process's auxiliary vector that points to the path that the
// process was started from.
const atExecFn = 31

// startedFrom returns the path that a process was started from.
func startedFrom(t *testing.T, pid int) string {
	t.Helper()
	vector, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = memory.Close() }()
	for ; len(vector) >= 16; vector = vector[16:] {
		if binary.NativeEndian.Uint64(vector) != atExecFn {
			continue
		}
		path := make([]byte, 4096)
		n, err := memory.ReadAt(path, int64(binary.NativeEndian.Uint64(vector[8:])))
		if n == 0 {
			t.Fatal(err)
		}
		path, _, _ = bytes.Cut(path[:n], []byte{0})
		return string(path)
	}
	t.Fatal("the process does not say what it was started from")
	return ""
}

// TestProgramIsStartedFromTheOpenFile starts a program that is not pinned.
func TestProgramIsStartedFromTheOpenFile(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	copyProgram(t, self, program)
	h, state, _ := host(t, func(cfg *pluginhost.Config) {
		cfg.Commands = map[string][]string{"free": append([]string{program}, command("good")[1:]...)}
	})
	all := h.Describe(deadline(t))
	if len(all) != 1 || all[0].Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY {
		t.Fatalf("the program is described as %v", all)
	}
	if from := startedFrom(t, pidOf(t, filepath.Join(state, "free"))); !strings.HasPrefix(from, "/proc/self/fd/") {
		t.Errorf("the program was started from %s, want the file that was checked", from)
	}
}

// TestScriptThatIsReplacedWhileItStartsIsRefused has a script, which is started by its
// path, change before it has started.
func TestScriptThatIsReplacedWhileItStartsIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := script(t, dir, "changing", "good")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replace := "#!/bin/sh\ncp \"$0\" \"$0.new\"; echo '#' >> \"$0.new\"; mv \"$0.new\" \"$0\"\n"
	if err := os.WriteFile(path, append([]byte(replace), content...), 0o700); err != nil {
		t.Fatal(err)
	}
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs = []string{dir} })
	all := h.Describe(deadline(t))
	if len(all) != 1 || !strings.Contains(all[0].Description.GetMessage(), "was replaced while it was started") {
		t.Errorf("the script is described as %v", all)
	}
}
