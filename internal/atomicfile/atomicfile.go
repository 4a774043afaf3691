// Package atomicfile replaces files so that a crash or a loss of power leaves the old
// content or the new one, and never a part.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Write replaces a file with one that only its owner can read.
func Write(path string, content []byte) error {
	return WriteFunc(path, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// WriteFunc replaces a file with what write makes of an empty one that only its owner
// can read.
func WriteFunc(path string, write func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	// CreateTemp makes files that only their owner can read.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if removed := os.Remove(f.Name()); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the new name of a file outlive a loss of power.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
