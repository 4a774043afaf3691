package pluginhost_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// install puts a plugin in the place of one that may run, at once, as a user
// does with mv or install, and returns its checksum.
func install(t *testing.T, dir, name, how string) string {
	t.Helper()
	from := script(t, t.TempDir(), name, how)
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(dir, ".next")
	if err := os.WriteFile(next, content, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, pluginhost.Prefix+name)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// pin writes a file of checksums.
func pin(t *testing.T, file string, lines ...string) {
	t.Helper()
	next := file + ".next"
	if err := os.WriteFile(next, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}

// described waits until the one plugin of a host is described as wanted, each
// time that the host says that something has changed.
func described(t *testing.T, h *pluginhost.Host, want func(*musterv1.ExecutorDescription) bool) *musterv1.ExecutorDescription {
	t.Helper()
	ctx := deadline(t)
	var last *musterv1.ExecutorDescription
	for {
		if all := h.Describe(ctx); len(all) > 0 {
			if last = all[0].Description; want(last) {
				return last
			}
		}
		select {
		case <-h.Changes():
		case <-ctx.Done():
			t.Fatalf("the plugin is described as %v", last)
		}
	}
}

func healthy(version string) func(*musterv1.ExecutorDescription) bool {
	return func(d *musterv1.ExecutorDescription) bool {
		return d.GetVersion() == version && d.GetHealth() == musterv1.ExecutorDescription_HEALTHY
	}
}

// A plugin is found, replaced by a newer one and by an older one while the host
// runs, and its tasks run on.
func TestAPluginIsUpgradedInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs = []string{dir} })
	install(t, dir, "it", "good")
	described(t, h, healthy("1.2.3"))
	e, err := h.For(deadline(t), "null", "")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, e.Executor, task(t, "a", nil))
	for _, step := range []struct{ how, version string }{{"better", "2.0.0"}, {"good", "1.2.3"}} {
		sum := install(t, dir, "it", step.how)
		d := described(t, h, healthy(step.version))
		if d.GetChecksum() != sum {
			t.Errorf("checksum = %s, want that of the new file, %s", d.GetChecksum(), sum)
		}
		listed, err := e.Executor.List(deadline(t), "node1")
		if err != nil || len(listed) != 1 || listed[0].State != executor.StateRunning {
			t.Errorf("after the upgrade to %s: %v, %v", step.version, listed, err)
		}
	}
	// A version that does not start is reported, and the one before it comes back.
	install(t, dir, "it", "exits")
	described(t, h, func(d *musterv1.ExecutorDescription) bool {
		return d.GetHealth() == musterv1.ExecutorDescription_UNHEALTHY && strings.Contains(d.GetMessage(), "exit status 7")
	})
	install(t, dir, "it", "good")
	described(t, h, healthy("1.2.3"))
}

// A file that is not pinned does not take the place of one that is, and is taken
// as soon as it is pinned.
func TestAnUpgradeMustBePinned(t *testing.T) {
	t.Parallel()
	dir, sums := t.TempDir(), filepath.Join(t.TempDir(), "SHA256SUMS")
	first := install(t, dir, "it", "good")
	pin(t, sums, "# what may run here", first+"  plugins/muster-executor-it")
	h, _, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs, cfg.ChecksumFile = []string{dir}, sums })
	described(t, h, healthy("1.2.3"))
	second := install(t, dir, "it", "better")
	d := described(t, h, func(d *musterv1.ExecutorDescription) bool { return strings.Contains(d.GetMessage(), "refused") })
	if d.GetHealth() != musterv1.ExecutorDescription_HEALTHY || d.GetVersion() != "1.2.3" || d.GetChecksum() != first ||
		!strings.Contains(d.GetMessage(), second) {
		t.Errorf("with a new file that is not pinned: %v", d)
	}
	// What cannot be understood changes nothing.
	pin(t, sums, second+"  muster-executor-it", "nonsense")
	pin(t, sums, first+"  muster-executor-it", second+" *muster-executor-it")
	if d := described(t, h, healthy("2.0.0")); d.GetMessage() != "" {
		t.Errorf("after the upgrade: %v", d)
	}
}

// With a file of checksums a plugin that it does not name is refused, until it
// names it.
func TestAFileOfChecksumsNamesAllPlugins(t *testing.T) {
	t.Parallel()
	dir, sums := t.TempDir(), filepath.Join(t.TempDir(), "SHA256SUMS")
	sum := install(t, dir, "it", "good")
	pin(t, sums)
	h, state, _ := host(t, func(cfg *pluginhost.Config) { cfg.Dirs, cfg.ChecksumFile = []string{dir}, sums })
	described(t, h, func(d *musterv1.ExecutorDescription) bool {
		return d.GetHealth() == musterv1.ExecutorDescription_UNHEALTHY && strings.Contains(d.GetMessage(), "does not name it")
	})
	if _, err := os.Stat(filepath.Join(state, "it", "pid")); err == nil {
		t.Error("the refused plugin was started")
	}
	pin(t, sums, sum+"  muster-executor-it")
	described(t, h, healthy("1.2.3"))
}
