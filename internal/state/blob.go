package state

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/musterhq/muster/internal/store"
)

// ChunkSize is the length of a blob's chunks, but for the last one. It leaves room for
// other records in a transaction, which takes some 380 KB.
const ChunkSize = 128 << 10

// ErrNoBlob says that a blob, or a part of it, is not in the store.
var ErrNoBlob = errors.New("data is not in the store")

// BlobDigest names data by its content.
func BlobDigest(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:]
}

// BlobKey is the key of the record that says that a blob is there.
func BlobKey(digest []byte) string { return hex.EncodeToString(digest) }

// ChunkKey is the key of a blob's chunk, counted from 0.
func ChunkKey(digest []byte, chunk int) string { return fmt.Sprintf("%s/%04d", BlobKey(digest), chunk) }

// Chunks returns the number of chunks that data of a size has.
func Chunks(size uint64) int { return int((size + ChunkSize - 1) / ChunkSize) }

// ReadBlob returns the data of a digest. ErrNoBlob: a part of it is not there, in this
// snapshot of the table.
func (t *Tables) ReadBlob(r store.Reader, digest []byte) ([]byte, error) {
	e, ok := t.Blobs.Get(r, BlobKey(digest))
	if !ok {
		return nil, ErrNoBlob
	}
	data := make([]byte, 0, e.Value.Size)
	for i := range Chunks(e.Value.Size) {
		chunk, ok := t.Blobs.Get(r, ChunkKey(digest, i))
		if !ok {
			return nil, ErrNoBlob
		}
		data = append(data, chunk.Value.Data...)
	}
	return data, nil
}
