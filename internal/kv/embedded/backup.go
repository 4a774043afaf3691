package embedded

import (
	"errors"
	"fmt"
	"io"

	"go.etcd.io/bbolt"
)

var errNoFile = errors.New("the store is kept in memory only")

// Backup writes a consistent copy of the store's file while the store is in use. The copy
// includes all changes that were answered before the call. [Open] opens it. If size is not
// nil, it is called with the length of the copy before anything is written.
func (s *KV) Backup(w io.Writer, size func(int64)) error {
	if s.file == nil {
		return errNoFile
	}
	err := s.file.db.View(func(tx *bbolt.Tx) error {
		if size != nil {
			size(tx.Size())
		}
		_, err := tx.WriteTo(w)
		return err
	})
	if err != nil {
		return fmt.Errorf("back up the store: %w", err)
	}
	return nil
}
