//go:build linux

package taskdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// Root is the directory that holds all task directories.
type Root string

const (
	tasksDir = "tasks"
	newDir   = "new"
	trashDir = "trash"
)

// idPattern matches valid task ids: an id becomes a file's name.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// ValidID tells whether an id can be a task's.
func ValidID(id string) bool { return idPattern.MatchString(id) }

// Open makes the root ready, and finishes what a process that was killed began.
func (r Root) Open() error {
	for _, name := range []string{tasksDir, newDir, trashDir} {
		if err := os.MkdirAll(filepath.Join(string(r), name), 0o700); err != nil {
			return fmt.Errorf("make the state directory: %w", err)
		}
	}
	for _, name := range []string{newDir, trashDir} {
		entries, err := os.ReadDir(filepath.Join(string(r), name))
		if err != nil {
			return fmt.Errorf("clean the state directory: %w", err)
		}
		for _, entry := range entries {
			if err := os.RemoveAll(filepath.Join(string(r), name, entry.Name())); err != nil {
				return fmt.Errorf("clean the state directory: %w", err)
			}
		}
	}
	return nil
}

// Create makes a task's directory. To make one that is there changes nothing.
func (r Root) Create(spec Spec) error {
	if !ValidID(spec.ID) {
		return fmt.Errorf("make a task's directory: %q is not a task id", spec.ID)
	}
	spec.Version = Version
	unfinished := filepath.Join(string(r), newDir, spec.ID)
	// A call before this one may have been cut short.
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("make a task's directory: %w", err)
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return fmt.Errorf("make a task's directory: %w", err)
	}
	err := errors.Join(
		Dir(unfinished).write(specFile, spec),
		os.WriteFile(filepath.Join(unfinished, lockFile), nil, 0o600),
	)
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, unfinished, unix.AT_FDCWD, r.path(spec.ID), unix.RENAME_NOREPLACE)
		if err == nil {
			return nil
		}
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err := errors.Join(err, os.RemoveAll(unfinished)); err != nil {
		return fmt.Errorf("make a task's directory: %w", err)
	}
	return nil
}

// Find returns a task's directory, or ErrNotFound.
func (r Root) Find(id string) (Dir, error) {
	if !ValidID(id) {
		return "", ErrNotFound
	}
	_, err := os.Lstat(r.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("look for a task: %w", err)
	}
	return Dir(r.path(id)), nil
}

// List returns all tasks' directories.
func (r Root) List() ([]Dir, error) {
	entries, err := os.ReadDir(filepath.Join(string(r), tasksDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the tasks: %w", err)
	}
	dirs := make([]Dir, 0, len(entries))
	for _, entry := range entries {
		dirs = append(dirs, Dir(r.path(entry.Name())))
	}
	return dirs, nil
}

// Remove removes a task's directory. The caller holds its lock.
func (r Root) Remove(d Dir) error {
	// No new directory is made for it: the disk may be full.
	trash := filepath.Join(string(r), trashDir, d.ID())
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove a task's directory: %w", err)
	}
	err := os.Rename(string(d), trash)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, os.RemoveAll(trash)); err != nil {
		return fmt.Errorf("remove a task's directory: %w", err)
	}
	return nil
}

func (r Root) path(id string) string { return filepath.Join(string(r), tasksDir, id) }
