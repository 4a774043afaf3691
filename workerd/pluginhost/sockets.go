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
	// longestSocketsDir is the longest path of that directory. A socket's path has at
	// most 103 bytes on every system, and go-plugin needs about 40 of them for the
	// names in the directory.
	longestSocketsDir = 60
	// commonTemp is the temporary directory if that of the settings is too long.
	commonTemp = "/tmp"
)

// openSockets makes an empty directory for the sockets of plugins, and returns a
// function that removes it. With a state directory it is the same one each time,
// so a worker that starts again removes what a killed one left.
func (h *Host) openSockets() (dir string, remove func() error, err error) {
	if h.cfg.StateDir == "" {
		dir, err = tempSockets()
	} else {
		dir, err = stateSockets(h.cfg.StateDir)
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

// tempSockets makes a directory for sockets that has a new name each time.
func tempSockets() (string, error) {
	var errs []error
	for _, temp := range tempDirs() {
		dir, err := os.MkdirTemp(temp, "muster-plugins-")
		if err == nil && len(dir) <= longestSocketsDir {
			return dir, nil
		}
		if err == nil {
			err = errors.Join(tooLong(dir), os.Remove(dir))
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// stateSockets makes the directory for the sockets of a state directory's plugins.
func stateSockets(stateDir string) (string, error) {
	var errs []error
	for _, dir := range socketsDirs(stateDir) {
		err := tooLong(dir)
		if err == nil {
			err = emptyDir(dir)
		}
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// socketsDirs returns where the sockets of a state directory's plugins can be, the
// best place first: within it, unless that path is too long for a socket, and under
// a name that is made of it in a temporary directory, which also helps when the
// state directory's disk is full.
func socketsDirs(stateDir string) (dirs []string) {
	if dir := filepath.Join(stateDir, socketsName); tooLong(dir) == nil {
		dirs = append(dirs, dir)
	}
	sum := sha256.Sum256([]byte(stateDir))
	for _, temp := range tempDirs() {
		dirs = append(dirs, filepath.Join(temp, "muster-"+hex.EncodeToString(sum[:8])))
	}
	return dirs
}

// tempDirs returns the temporary directories for sockets: that of the settings, and
// a shorter one if that is too long.
func tempDirs() []string {
	temp := os.TempDir()
	if len(temp)+len("/muster-plugins-4294967295") <= longestSocketsDir {
		return []string{temp}
	}
	return []string{commonTemp, temp}
}

// tooLong returns an error if the path of a directory is too long for the sockets
// in it.
func tooLong(dir string) error {
	if len(dir) <= longestSocketsDir {
		return nil
	}
	return fmt.Errorf("path %s has %d bytes, but a socket's path allows %d: set TMPDIR or --data-dir to a shorter path",
		dir, len(dir), longestSocketsDir)
}

// emptyDir makes a directory that only this user can access, or empties the one that
// is there if it is such a directory.
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
	// Any user may have made it in a temporary directory.
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !isOurs(info) {
		return fmt.Errorf("%s is there and is not a private directory of this user", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}
