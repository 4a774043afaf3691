package pluginhost_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/pluginhost"
)

func TestSocketsAreWhereAKilledWorkersAreFoundAgain(t *testing.T) {
	temp, err := os.MkdirTemp("", "mt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(temp); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", temp)
	for name, stateDir := range map[string]string{
		"short": filepath.Join(temp, "state"),
		"long":  filepath.Join(temp, strings.Repeat("long", 20), "state"),
	} {
		t.Run(name, func(t *testing.T) {
			// What a worker that was killed left.
			dir := pluginhost.SocketsDir(stateDir)
			if short := strings.HasPrefix(dir, stateDir); short != (name == "short") {
				t.Errorf("sockets are in %s", dir)
			}
			stale := filepath.Join(dir, "plugin-dir1", "plugin2")
			if err := os.MkdirAll(filepath.Dir(stale), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(stale, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			h, _, stop := host(t, func(cfg *pluginhost.Config) {
				cfg.StateDir = stateDir
				cfg.Commands = map[string][]string{"good": command("good")}
			})
			if _, err := h.For(deadline(t), "null", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(stale); !os.IsNotExist(err) {
				t.Errorf("%s is still there (%v)", stale, err)
			}
			if all, err := filepath.Glob(filepath.Join(dir, "*", "*")); err != nil || len(all) != 1 {
				t.Errorf("sockets: %v (%v), want one", all, err)
			}
			stop()
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left (%v)", dir, err)
			}
		})
	}
	t.Run("strangers", func(t *testing.T) {
		stateDir := filepath.Join(temp, strings.Repeat("other", 20))
		dir := pluginhost.SocketsDir(stateDir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cfg := pluginhost.DefaultConfig()
		cfg.StateDir = stateDir
		h, err := pluginhost.New(pluginhost.Env{Logger: zap.NewNop()}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := h.Run(ctx); err == nil || !strings.Contains(err.Error(), dir+" is there and is not a private directory") {
			t.Errorf("run: %v", err)
		}
	})
}

// TestPluginsStartWhereTMPDIRIsLong starts a plugin where the temporary directory
// has a path that is too long for a socket, with and without a state directory.
func TestPluginsStartWhereTMPDIRIsLong(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 20))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	for name, stateDir := range map[string]string{"no state directory": "", "long state directory": filepath.Join(long, "state")} {
		t.Run(name, func(t *testing.T) {
			h, _, _ := host(t, func(cfg *pluginhost.Config) {
				cfg.StateDir = stateDir
				cfg.Commands = map[string][]string{"good": command("good")}
			})
			if d, err := h.For(deadline(t), "null", ""); err != nil {
				t.Error(err)
			} else if health := d.Description.GetHealth(); health != musterv1.ExecutorDescription_HEALTHY {
				t.Errorf("executor: %v", d.Description)
			}
		})
	}
}
