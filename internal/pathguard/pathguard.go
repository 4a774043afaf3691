// Package pathguard tells whether a file can be trusted by its path: whether only root
// and the user of this process can change it, or replace it or anything that its path
// leads through. OpenSSH asks the same of its keys.
//
// Owners, permission bits and, on Linux, POSIX access control lists are checked.
// Those of NFSv4 are not: a server keeps them. Windows has other permissions, of which
// nothing is checked.
package pathguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxLinks bounds the symbolic links in one path, as the kernel does.
const maxLinks = 40

var errLinks = errors.New("too many symbolic links")

// Error says what other users can change.
type Error struct {
	// Path is the path that was checked, and At what of it others can change: the file,
	// a directory that its path leads through, or a symbolic link.
	Path, At string
	// Reason says why, and what to do about it.
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return e.At + " " + e.Reason }

// Check returns an *Error if others can change or replace what a path leads to.
func Check(path string) error {
	_, _, err := resolve(path)
	return err
}

// Open opens a file for reading, if Check allows it. What is open is what was checked.
func Open(path string) (*os.File, error) {
	real, info, err := resolve(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, err
	}
	// Only trusted users could have replaced it since, but what is there now is unchecked.
	if open, err := f.Stat(); err != nil || !os.SameFile(info, open) {
		return nil, errors.Join(fmt.Errorf("%s was replaced while it was opened", path), err, f.Close())
	}
	return f, nil
}

// resolve follows a path from the root, checks each step, and returns where it leads.
func resolve(path string) (string, fs.FileInfo, error) {
	if !posix {
		info, err := os.Stat(path)
		return path, info, err
	}
	// Not cleaned: where ".." leads depends on the links before it.
	abs := path
	if !filepath.IsAbs(abs) {
		dir, err := os.Getwd()
		if err != nil {
			return "", nil, fmt.Errorf("find %s: %w", path, err)
		}
		abs = dir + "/" + path
	}
	at := "/"
	info, err := os.Lstat(at)
	if err == nil {
		err = step(path, at, info, false)
	}
	if err != nil {
		return "", nil, err
	}
	root := info
	// shared says that others can add entries to the directory at.
	shared := sharedDirectory(root)
	links := 0
	for rest := parts(abs); len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if info, err = os.Lstat(next); err != nil {
			return "", nil, err
		}
		if err := step(path, next, info, shared); err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at, shared = next, sharedDirectory(info)
			continue
		}
		if links++; links > maxLinks {
			return "", nil, &fs.PathError{Op: "resolve", Path: path, Err: errLinks}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", nil, err
		}
		if filepath.IsAbs(target) {
			at, shared = "/", sharedDirectory(root)
		}
		rest = slices.Concat(parts(target), rest)
	}
	// After a final ".." the last step was not to here.
	if info, err = os.Lstat(at); err != nil {
		return "", nil, err
	}
	return at, info, nil
}

// parts returns the names in a path.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(p string) bool { return p == "" || p == "." })
}

// sharedDirectory reports whether others can add entries to a directory, but not
// replace those of trusted owners, as in /tmp. Its files and symbolic links are not
// trusted, whatever their owner and the number of their names: others may have linked
// (where fs.protected_hardlinks is 0) or moved them there, from a directory that is
// theirs, and have removed every other name since. Directories cannot be linked, and
// only those who can write to them can move them elsewhere.
func sharedDirectory(info fs.FileInfo) bool {
	return info.IsDir() && info.Mode()&fs.ModeSticky != 0 && info.Mode()&0o022 != 0
}

// acl says who else may write to a file by its access control list.
type acl struct {
	users, groups []int
	// owningGroup says that the file's own group may.
	owningGroup bool
}

// step checks one file, directory or symbolic link of a path. In a shared directory
// others may have put it there.
func step(path, at string, info fs.FileInfo, shared bool) error {
	owner, group, ok := ownerOf(info)
	if !ok {
		return fmt.Errorf("find the owner of %s: %w", at, syscall.ENOTSUP)
	}
	if owner != 0 && owner != os.Geteuid() {
		return &Error{path, at, fmt.Sprintf("belongs to user %d, and neither to root nor to the user of this process (%d); chown changes that", owner, os.Geteuid())}
	}
	mode := info.Mode()
	if shared && !mode.IsDir() {
		return &Error{path, at, "lies in a directory that is open to others, who can put files of its owner there; move it to a directory that only its owner can write to"}
	}
	switch {
	case mode&fs.ModeSymlink != 0:
		// It has no permissions of its own. Who can replace it is up to its directory.
		return nil
	case mode.IsDir() && mode&fs.ModeSticky != 0:
		// In a sticky directory (/tmp) others can add entries, but not replace those of
		// trusted owners. The next step checks the entry.
		return nil
	case mode&0o002 != 0:
		return writable(path, at, mode)
	case mode&0o020 == 0:
		// An access control list cannot grant what the bits of the group, its mask, do not.
		return nil
	}
	list, err := accessList(at)
	switch {
	case err != nil:
		return err
	case list == nil && system.private(owner, group):
		return nil
	case list == nil, list.owningGroup && !system.private(owner, group):
		return writable(path, at, mode)
	}
	for _, user := range list.users {
		if user != 0 && user != os.Geteuid() {
			return &Error{path, at, fmt.Sprintf("can be written to by user %d, as its access control list says; setfacl -b changes that", user)}
		}
	}
	for _, other := range list.groups {
		if !system.private(owner, other) {
			return &Error{path, at, fmt.Sprintf("can be written to by group %d, as its access control list says; setfacl -b changes that", other)}
		}
	}
	return nil
}

// writable returns the error about a file that others can write to.
func writable(path, at string, mode fs.FileMode) error {
	return &Error{path, at, fmt.Sprintf("can be written to by others than its owner (%v); chmod go-w changes that", mode)}
}
