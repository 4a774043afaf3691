//go:build unix

package pluginhost_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	testneed "github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// TestFilesThatOthersCanChangeAreNotStarted has plugins that others can write to,
// replace, or own, beside one that no other user can touch.
func TestFilesThatOthersCanChangeAreNotStarted(t *testing.T) {
	t.Parallel()
	kept, hidden := t.TempDir(), t.TempDir()
	script(t, kept, "kept", "good")
	target := script(t, hidden, "target", "good")
	dirs := []string{kept}
	// place makes a directory with one plugin.
	place := func(name string) (dir, path string) {
		dir = t.TempDir()
		dirs = append(dirs, dir)
		return dir, script(t, dir, name, "good")
	}
	want := map[string]string{"kept": ""}
	chmod := func(name, path string, mode os.FileMode, says string) {
		t.Helper()
		want[name] = says
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	_, path := place("writable")
	chmod("writable", path, 0o777, "chmod go-w")
	dir, _ := place("replaceable")
	chmod("replaceable", dir, 0o777, "chmod go-w")
	dir, _ = place("sticky")
	chmod("sticky", dir, 0o777|os.ModeSticky, "open to others")
	dir = t.TempDir()
	dirs = append(dirs, dir)
	if err := os.Symlink(target, filepath.Join(dir, "muster-executor-linked")); err != nil {
		t.Fatal(err)
	}
	chmod("linked", dir, 0o777, "chmod go-w")
	// below makes a directory with one plugin, some directories below one whose mode is
	// set, and returns it and the directory in between.
	below := func(name string, mode os.FileMode, says string) (plugins, between string) {
		root := t.TempDir()
		between = filepath.Join(root, "lib")
		plugins = filepath.Join(between, "plugins")
		if err := os.MkdirAll(plugins, 0o700); err != nil {
			t.Fatal(err)
		}
		script(t, plugins, name, "good")
		chmod(name, root, mode, says)
		return plugins, between
	}
	plugins, _ := below("ancestor", 0o777, "chmod go-w")
	dirs = append(dirs, plugins)
	plugins, _ = below("sticky-ancestor", 0o777|os.ModeSticky, "")
	dirs = append(dirs, plugins)
	_, between := below("linked-ancestor", 0o777, "chmod go-w")
	linked := filepath.Join(t.TempDir(), "lib")
	if err := os.Symlink(between, linked); err != nil {
		t.Fatal(err)
	}
	dirs = append(dirs, filepath.Join(linked, "plugins"))
	started(t, dirs, want)
}

// TestFilesOfOthersAreNotStarted has plugins, and directories of plugins, that belong
// to another user, or that another group can write to.
func TestFilesOfOthersAreNotStarted(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testneed.Met(t, errors.New("files of another user, which only root can make"))
	}
	ours, theirs, shared, above := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	foreign := script(t, ours, "foreign", "good")
	script(t, ours, "kept", "good")
	script(t, theirs, "in-foreign", "good")
	group := script(t, ours, "group", "good")
	script(t, shared, "by-the-group", "good")
	below := filepath.Join(above, "plugins")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	script(t, below, "below-foreign", "good")
	err := errors.Join(os.Chown(foreign, 65533, 65533), os.Chown(theirs, 65533, 65533), os.Chown(above, 65533, 65533),
		os.Chown(group, -1, 65533), os.Chmod(group, 0o770), os.Chown(shared, -1, 65533), os.Chmod(shared, 0o770))
	if err != nil {
		t.Fatal(err)
	}
	started(t, []string{ours, theirs, shared, below}, map[string]string{
		"kept": "", "foreign": "chown", "in-foreign": "chown", "below-foreign": "chown", "group": "chmod go-w", "by-the-group": "chmod go-w",
	})
}

// started expects the plugins that are found to be started, or refused with what is
// wanted of each.
func started(t *testing.T, dirs []string, want map[string]string) {
	t.Helper()
	h, state, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs = dirs })
	found := 0
	for _, d := range h.Describe(deadline(t)) {
		found++
		says, message := want[d.Name], d.Description.GetMessage()
		refused := strings.Contains(message, "is refused")
		if refused != (says != "") || !strings.Contains(message, says) {
			t.Errorf("%s: %q, want it to be refused: %v, with %q", d.Name, message, says != "", says)
		}
		if _, err := os.Stat(filepath.Join(state, d.Name, "pid")); refused && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was started", d.Name)
		}
	}
	if found != len(want) {
		t.Errorf("%d plugins are found, want %d", found, len(want))
	}
}
