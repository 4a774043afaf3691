// Package files keeps the files of a node's tasks, their secrets and configs, on a tmpfs. The
// files of a task lie in a directory of its own as they lie in the task:
//
//	<runtime directory>/<node>/<task>/run/secrets/password
//
// A container of a group counts as a task: it has an id of its own. Files are replaced by
// renaming others over them, so a reader sees all of the former content or all of the new.
// What must still be done after files were replaced is noted beside them, so that a worker
// that is started again does it.
package files

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// File is a file of a task.
type File struct {
	// Target is the absolute path in the task.
	Target   string
	Data     []byte
	UID, GID uint32
	Mode     fs.FileMode
}

// Store keeps the files of the tasks of one node. It is safe for concurrent use.
type Store struct {
	dir string
	// mu guards the directory, which is there while a task has files.
	mu sync.Mutex
}

// staging holds files that are being written. Ids of tasks do not begin with a dot.
const staging = ".new"

// signalsSuffix ends the name of the file that notes signals to send.
const signalsSuffix = ".signals"

// Open returns the store of a node below a runtime directory, which is made, and gets a tmpfs
// if it is on none. Dir must not be shared with other users.
func Open(dir, node string) (*Store, error) {
	if !plain(node) {
		return nil, fmt.Errorf("node id %q cannot be the name of a directory", node)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the runtime directory: %w", err)
	}
	if err := ensureTmpfs(dir); err != nil {
		return nil, fmt.Errorf("keep the files of tasks in memory: %w", err)
	}
	s := &Store{dir: filepath.Join(dir, node)}
	if err := private(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// What an earlier worker was writing when it was killed is never used.
	if err := os.RemoveAll(s.path(staging)); err != nil {
		return nil, fmt.Errorf("clean the runtime directory: %w", err)
	}
	return s, nil
}

// make makes the directory if it is not there. The caller holds mu.
func (s *Store) make() error {
	if err := os.MkdirAll(s.path(staging), 0o700); err != nil {
		return fmt.Errorf("make the runtime directory: %w", err)
	}
	return private(s.dir)
}

// private returns an error if a directory is open to other users, one of whom may have made
// it.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the runtime directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("runtime directory %s must be the worker's own, with mode 0700: remove it, or choose another one", dir)
	}
	return nil
}

// plain reports whether a name is that of one directory entry.
func plain(name string) bool {
	return name != "" && name[0] != '.' && filepath.IsLocal(name) && filepath.Base(name) == name
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Path returns the path of a file of a task.
func (s *Store) Path(task, target string) string { return filepath.Join(s.dir, task, target) }

// Has reports whether a task has a file.
func (s *Store) Has(task, target string) bool {
	_, err := os.Lstat(s.Path(task, target))
	return err == nil
}

// Current reports whether a file has the content, owner and mode that it should have.
func (s *Store) Current(task string, f File) bool {
	path := s.Path(task, f.Target)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != f.Mode.Perm() || info.Size() != int64(len(f.Data)) {
		return false
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != f.UID || stat.Gid != f.GID {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, f.Data)
}

// Write writes a file, or replaces it.
func (s *Store) Write(task string, f File) (err error) {
	if !plain(task) {
		return fmt.Errorf("task id %q cannot be the name of a directory", task)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.make(); err != nil {
		return err
	}
	if err := s.makeDirs(task, filepath.Dir(f.Target)); err != nil {
		return fmt.Errorf("make a directory for %s: %w", f.Target, err)
	}
	temp, err := os.CreateTemp(s.path(staging), "file")
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Target, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(f.Data)
	if err == nil && (int(f.UID) != os.Geteuid() || int(f.GID) != os.Getegid()) {
		err = temp.Chown(int(f.UID), int(f.GID))
	}
	if err == nil {
		err = temp.Chmod(f.Mode.Perm())
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", f.Target, err)
	}
	if err := os.Rename(temp.Name(), s.Path(task, f.Target)); err != nil {
		return fmt.Errorf("write %s: %w", f.Target, err)
	}
	return nil
}

// makeDirs makes the directories that lead to a file. All users may pass through them: only
// the task sees them.
func (s *Store) makeDirs(task, dir string) error {
	missing := []string{}
	for path := s.Path(task, dir); path != s.dir; path = filepath.Dir(path) {
		if _, err := os.Lstat(path); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, path)
	}
	slices.Reverse(missing)
	for _, path := range missing {
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// The worker's umask may be narrower.
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes all files of a task.
func (s *Store) Remove(task string) error {
	if !plain(task) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := errors.Join(os.RemoveAll(s.path(task)), os.RemoveAll(s.path(task+signalsSuffix)))
	// Neither is removed unless it is empty.
	_, _ = os.Remove(s.path(staging)), os.Remove(s.dir)
	return err
}

// Keep removes the files of all tasks but the given ones.
func (s *Store) Keep(tasks map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the runtime directory: %w", err)
	}
	var failed []error
	for _, entry := range entries {
		name := entry.Name()
		if id, ok := cutSignals(name); name == staging || tasks[id] && ok || tasks[name] {
			continue
		}
		failed = append(failed, os.RemoveAll(s.path(name)))
	}
	return errors.Join(failed...)
}

func cutSignals(name string) (id string, ok bool) {
	if n := len(name) - len(signalsSuffix); n > 0 && name[n:] == signalsSuffix {
		return name[:n], true
	}
	return "", false
}

// Close removes the files of all tasks. The store must not be used any longer.
func (s *Store) Close() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the files of tasks: %w", err)
	}
	return nil
}

// Signals returns the signals that must still be sent to a task because its files were
// replaced.
func (s *Store) Signals(task string) ([]string, error) {
	data, err := os.ReadFile(s.path(task + signalsSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the signals to send: %w", err)
	}
	var signals []string
	if err := json.Unmarshal(data, &signals); err != nil {
		return nil, fmt.Errorf("read the signals to send: %w", err)
	}
	return signals, nil
}

// AddSignal notes that a signal must be sent.
func (s *Store) AddSignal(task, signal string) error {
	signals, err := s.Signals(task)
	if err != nil || slices.Contains(signals, signal) {
		return err
	}
	data, err := json.Marshal(append(signals, signal))
	if err != nil {
		return fmt.Errorf("note a signal to send: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.make(); err != nil {
		return err
	}
	unfinished := filepath.Join(s.path(staging), task+signalsSuffix)
	err = os.WriteFile(unfinished, data, 0o600)
	if err == nil {
		err = os.Rename(unfinished, s.path(task+signalsSuffix))
	}
	if err != nil {
		return fmt.Errorf("note a signal to send: %w", err)
	}
	return nil
}

// ClearSignals notes that no signal must be sent any longer.
func (s *Store) ClearSignals(task string) error {
	if err := os.RemoveAll(s.path(task + signalsSuffix)); err != nil {
		return fmt.Errorf("note that signals were sent: %w", err)
	}
	return nil
}
