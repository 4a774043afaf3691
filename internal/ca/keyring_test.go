package ca_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/seal"
)

// keyFile writes a file with some keys and returns its path.
func keyFile(t *testing.T, path string, keys ...string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newKeyText makes a key as it is in files.
func newKeyText(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if _, err := seal.MakeKey(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func loadKeys(t *testing.T, path string) *seal.Keyring {
	t.Helper()
	keys, err := seal.LoadKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestKeyIsReplaced has authorities with the old key, with both and with the new one
// on one store, as apids are while the key is replaced.
func TestKeyIsReplaced(t *testing.T) {
	space, dir := newSpace(t), t.TempDir()
	before, after := newKeyText(t), newKeyText(t)
	oldPath := keyFile(t, filepath.Join(dir, "old"), before)
	bothPath := keyFile(t, filepath.Join(dir, "both"), after, before)
	newPath := keyFile(t, filepath.Join(dir, "new"), after)
	withOld, withBoth := runWith(t, space, loadKeys(t, oldPath)), runWith(t, space, loadKeys(t, bothPath))
	withNew := runWith(t, space, loadKeys(t, newPath))
	if _, err := withOld.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It hears of what another one made in its own time.
	if err := withBoth.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	opens := func(what string, a *ca.Authority, want bool) {
		t.Helper()
		// As joining does: it reads the store itself.
		tokens, err := withBoth.JoinTokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.CheckJoin(t.Context(), tokens.Worker, false); (err == nil) != want {
			t.Errorf("%s: %v, want it to open the secrets: %v", what, err, want)
		}
	}
	opens("old key", withOld, true)
	opens("new key before there is anything sealed with it", withNew, false)
	// What one with both keys changes is still for those with the old one alone.
	if _, err := withBoth.RotateJoin(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	opens("old key after a change with both", withOld, true)

	names := withBoth.KeyNames()
	if len(names) != 2 || names[0] != withNew.KeyNames()[0] || names[1] != withOld.KeyNames()[0] {
		t.Fatalf("keys are %v, %v and %v", names, withNew.KeyNames(), withOld.KeyNames())
	}
	if err := withBoth.Reseal(t.Context(), names[1], "ada"); !errors.Is(err, ca.ErrOtherKey) {
		t.Errorf("to reseal with a key that is not the first: %v", err)
	}
	if err := withBoth.Reseal(t.Context(), names[0], "ada"); err != nil {
		t.Fatal(err)
	}
	opens("both keys after", withBoth, true)
	opens("new key after", withNew, true)
	opens("old key after", withOld, false)
	if name, err := withNew.SealedWith(t.Context()); err != nil || name != names[0] {
		t.Errorf("it is sealed with %s, %v, want %s", name, err, names[0])
	}
	// The files change under those that run.
	keyFile(t, oldPath, after)
	opens("a file that was changed", withOld, true)
	keyFile(t, bothPath, after)
	if got := withBoth.KeyNames(); len(got) != 1 || got[0] != names[0] {
		t.Errorf("without the old key there are %v", got)
	}
	// A file that is being written takes no key away.
	keyFile(t, newPath, "half")
	if err := withNew.Reseal(t.Context(), names[0], "ada"); err != nil {
		t.Errorf("with a file that cannot be read: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	made, err := seal.MakeKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if keys := loadKeys(t, path); run(t, newSpace(t), made).KeyNames()[0] != runWith(t, newSpace(t), keys).KeyNames()[0] {
		t.Error("the key is not found again")
	}
	if _, err := seal.MakeKey(path); err == nil {
		t.Error("a key is overwritten")
	}
	for name, content := range map[string]string{
		"half a key": "short", "nothing": "\n\n", "a key and a half": newKeyText(t) + "\nshort", "too many": strings.Repeat(newKeyText(t)+"\n", 9),
	} {
		if _, err := seal.LoadKeys(keyFile(t, path, content)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
