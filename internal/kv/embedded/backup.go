package embedded

import (
	"errors"
	"fmt"
	"io"

	"go.etcd.io/bbolt"
)

var errNoFile = errors.New("the store is kept in memory only")

// Backup writes a copy of the store's file, as it is at one moment, while the
// store keeps working. All that was answered before is in it. [Open] opens such a
// copy. Size, if not nil, is told how long it is going to be before anything is
// written.
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
