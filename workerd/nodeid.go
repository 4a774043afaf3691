package workerd

import (
	"crypto/rand"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// idLength is the length of ids in base 36 that hold 128 random bits.
const idLength = 25

// newNodeID returns a new id, of the form that all ids in Muster have.
func newNodeID() string {
	var raw [16]byte
	// It never fails, says its documentation.
	_, _ = rand.Read(raw[:])
	text := new(big.Int).SetBytes(raw[:]).Text(36)
	return strings.Repeat("0", max(idLength-len(text), 0)) + text
}

// writeFile writes a file so that it is there as a whole or not at all.
func writeFile(path, content string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if gone := os.Remove(f.Name()); !errors.Is(gone, os.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}()
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if runtime.GOOS == "windows" {
		return nil
	}
	// The name, too, is to outlive a loss of power.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
