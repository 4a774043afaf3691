//go:build unix

package pathguard_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/pathguard"
	testneed "github.com/musterhq/muster/test/kit/need"
)

// tree makes a/b/c/file in a directory of its own, and returns that.
func tree(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/c/file"), []byte("content"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// expect checks a path, and wants others to be able to change what lies at another;
// "" if nothing.
func expect(t *testing.T, path, at string) {
	t.Helper()
	err := pathguard.Check(path)
	var found *pathguard.Error
	switch {
	case at == "" && err != nil:
		t.Errorf("Check(%s) = %v, want nil", path, err)
	case at != "" && (!errors.As(err, &found) || found.At != at || found.Path != path):
		t.Errorf("Check(%s) = %v, want an error about %s", path, err, at)
	}
	f, openErr := pathguard.Open(path)
	if (openErr == nil) != (err == nil) {
		t.Errorf("Open(%s) = %v, and Check = %v", path, openErr, err)
	}
	if openErr == nil {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryDirectoryOnThePathIsChecked(t *testing.T) {
	dir := tree(t)
	file := filepath.Join(dir, "a/b/c/file")
	expect(t, file, "")
	for _, at := range []string{"a", "a/b", "a/b/c", "a/b/c/file"} {
		at = filepath.Join(dir, at)
		info, err := os.Stat(at)
		if err != nil {
			t.Fatal(err)
		}
		chmod(t, at, info.Mode()|0o002)
		expect(t, file, at)
		chmod(t, at, info.Mode())
	}
	a := filepath.Join(dir, "a")
	chmod(t, a, 0o777|fs.ModeSticky)
	expect(t, file, "")
	expect(t, filepath.Join(dir, "a/b/../b/c/file"), "")
	chmod(t, file, 0o666|fs.ModeSticky)
	expect(t, file, file)
}

func TestLinksAreCheckedWhereTheyLie(t *testing.T) {
	dir, other := tree(t), tree(t)
	link(t, filepath.Join(dir, "a/b/c"), filepath.Join(other, "a/b/absolute"))
	link(t, "../a/b", filepath.Join(other, "a/up"))
	through := filepath.Join(other, "a/up/absolute/file")
	expect(t, through, "")
	for _, at := range []string{filepath.Join(other, "a"), filepath.Join(other, "a/b"), filepath.Join(dir, "a"), filepath.Join(dir, "a/b/c")} {
		chmod(t, at, 0o777)
		expect(t, through, at)
		chmod(t, at, 0o755)
	}
	link(t, "loop", filepath.Join(dir, "loop"))
	if err := pathguard.Check(filepath.Join(dir, "loop")); err == nil {
		t.Error("a link that leads to itself is followed to an end")
	}
	if err := pathguard.Check(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is missing: %v, want %v", err, fs.ErrNotExist)
	}
	if err := pathguard.Check(filepath.Join(dir, "a/b/c/file/below")); err == nil {
		t.Error("a file has a file below it")
	}
}

func TestOwnersAreCheckedInStickyDirectories(t *testing.T) {
	if os.Geteuid() != 0 {
		testneed.Met(t, errors.New("files of another user, which only root can make"))
	}
	const stranger = 65533
	dir := tree(t)
	sticky := filepath.Join(dir, "a")
	theirs := filepath.Join(sticky, "link")
	link(t, "b", theirs)
	expect(t, filepath.Join(theirs, "c/file"), "")
	// Others may have linked or moved it there.
	chmod(t, sticky, 0o777|fs.ModeSticky)
	expect(t, filepath.Join(theirs, "c/file"), theirs)
	chmod(t, sticky, 0o755)
	// Its owner can replace it at any time, although it leads to what is trusted.
	if err := os.Lchown(theirs, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	expect(t, filepath.Join(theirs, "c/file"), theirs)
	chmod(t, sticky, 0o777|fs.ModeSticky)
	for _, at := range []string{"a/b/c/file", "a/b/c", "a/b", "a"} {
		at = filepath.Join(dir, at)
		if err := os.Chown(at, stranger, stranger); err != nil {
			t.Fatal(err)
		}
		expect(t, filepath.Join(dir, "a/b/c/file"), at)
	}
	group := tree(t)
	at := filepath.Join(group, "a/b")
	if err := os.Chown(at, 0, stranger); err != nil {
		t.Fatal(err)
	}
	chmod(t, at, 0o775)
	expect(t, filepath.Join(group, "a/b/c/file"), at)
	if err := pathguard.Check(at); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("Check = %v, want it to say what to do", err)
	}
}

// TestFilesInSharedDirectoriesAreRefused: their owner does not say who put them there.
// Another user can link a file, wait until its other name is removed, or move one.
func TestFilesInSharedDirectoriesAreRefused(t *testing.T) {
	dir := tree(t)
	plugins := filepath.Join(dir, "a/b/c")
	file, linked := filepath.Join(plugins, "file"), filepath.Join(plugins, "linked")
	if err := os.Link(file, linked); err != nil {
		t.Fatal(err)
	}
	link(t, "a/b/c/linked", filepath.Join(dir, "through"))
	// Only trusted users can have linked it here.
	expect(t, linked, "")
	for _, mode := range []fs.FileMode{0o777, 0o775} {
		chmod(t, plugins, mode|fs.ModeSticky)
		expect(t, linked, linked)
		expect(t, plugins, "")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	expect(t, linked, linked)
	if err := pathguard.Check(filepath.Join(dir, "through")); err == nil {
		t.Error("a file in a shared directory is accepted through a symbolic link")
	}
	if err := errors.Join(os.Mkdir(filepath.Join(plugins, "own"), 0o755), os.Rename(linked, filepath.Join(plugins, "own/linked"))); err != nil {
		t.Fatal(err)
	}
	expect(t, filepath.Join(plugins, "own/linked"), "")
}
