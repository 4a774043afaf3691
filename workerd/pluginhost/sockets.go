package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// socketsName is the directory for sockets in the state directory. No plugin
	// can have this name.
	socketsName = ".sockets"
	// longestSocketsDir is how long its path may be: a socket's path has at most
	// 103 bytes on every system, of which go-plugin takes some 40 for the names
	// beneath.
	longestSocketsDir = 60
)

// openSockets makes an empty directory for the sockets of plugins, and returns
// what removes it. With a state directory it is the same one each time, so that
// a worker that starts again clears away what a killed one left.
func (h *Host) openSockets() (dir string, remove func() error, err error) {
	if h.cfg.StateDir == "" {
		dir, err = os.MkdirTemp("", "muster-plugins-")
	} else {
		for _, dir = range socketsDirs(h.cfg.StateDir) {
			made := emptyDir(dir)
			if made == nil {
				err = nil
				break
			}
			err = errors.Join(err, made)
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("make directory for plugin sockets: %w", err)
	}
	return dir, func() error {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove directory of plugin sockets: %w", err)
		}
		return nil
	}, nil
}

// socketsDirs returns where the sockets of a state directory's plugins can be,
// the best place first: within it, unless that path is too long for a socket;
// and, also for when its disk is full, in the temporary directory under a name
// that is made of it.
func socketsDirs(stateDir string) []string {
	sum := sha256.Sum256([]byte(stateDir))
	dirs := []string{filepath.Join(os.TempDir(), "muster-"+hex.EncodeToString(sum[:8]))}
	if dir := filepath.Join(stateDir, socketsName); len(dir) <= longestSocketsDir {
		dirs = []string{dir, dirs[0]}
	}
	return dirs
}

// emptyDir makes a directory that nobody else can look into, or empties the one
// that is there, if it is such a one.
func emptyDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	// In the temporary directory anybody may have put it there.
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !isOurs(info) {
		return fmt.Errorf("%s is there and is not a private directory of this user", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}
