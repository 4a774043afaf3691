package provision

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"github.com/musterhq/muster/internal/atomicfile"
)

// folder is one owner's files.
type folder struct {
	path  string
	owner *Owner
}

// private makes a folder that stays with the provisioning user.
func (c *Cluster) private(party string) (*folder, error) { return c.make(party, nil) }

// foreign makes a folder that belongs to the user whom daemons run as.
func (c *Cluster) foreign(party string) (*folder, error) { return c.make(party, c.cfg.Owner) }

func (c *Cluster) make(party string, owner *Owner) (*folder, error) {
	f := &folder{path: filepath.Join(c.cfg.Dir, party), owner: owner}
	if err := os.MkdirAll(f.path, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", party, err)
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", party, err)
	}
	// A volume comes with a mode of its own. Who no longer owns the folder may not
	// change it, and need not.
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(f.path, 0o700); err != nil {
			return nil, fmt.Errorf("close folder of %s: %w", party, err)
		}
	}
	return f, f.give(f.path)
}

// give makes something the owner's.
func (f *folder) give(path string) error {
	if f.owner == nil {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) == f.owner.User && int(s.Gid) == f.owner.Group {
		return nil
	}
	if err := os.Lchown(path, f.owner.User, f.owner.Group); err != nil {
		return fmt.Errorf("give away: %w", err)
	}
	return nil
}

// write writes files as a whole or not at all; what is the same stays untouched.
func (f *folder) write(files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := f.put(name, files[name]); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(f.path, name), err)
		}
	}
	return nil
}

func (f *folder) put(name, content string) error {
	path := filepath.Join(f.path, name)
	if old, err := os.ReadFile(path); err == nil && string(old) == content {
		return f.give(path)
	}
	return atomicfile.WriteFunc(path, func(t *os.File) error {
		if _, err := t.WriteString(content); err != nil {
			return err
		}
		return f.give(t.Name())
	})
}

// keep returns a file's text, and writes what is made for it first if there is
// none.
func (f *folder) keep(name string, make func() string) (string, error) {
	b, err := os.ReadFile(filepath.Join(f.path, name))
	if err == nil {
		return strings.TrimSpace(string(b)), f.give(filepath.Join(f.path, name))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	text := make()
	return text, f.write(map[string]string{name: text + "\n"})
}

// newToken makes a token as Consul wants them.
func newToken() string { return uuid.NewString() }

// newGossipKey makes a key for the servers' gossip.
func newGossipKey() string {
	key := make([]byte, 32)
	// It never fails, says its documentation.
	_, _ = rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}
