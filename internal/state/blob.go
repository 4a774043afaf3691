package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// ChunkSize is the length of a blob's chunks except the last one. It leaves room for
// other records in a transaction, which holds about 380 KB.
const ChunkSize = 128 << 10

// ErrNoBlob says that a blob or one of its chunks is not in the store.
var ErrNoBlob = errors.New("data is not in the store")

// ErrBlobDamaged says that the stored content of a blob is not what its digest says.
var ErrBlobDamaged = errors.New("data in the store does not match its digest")

// BlobDigest identifies data by its content.
func BlobDigest(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:]
}

// BlobKey returns the key of a blob's main record.
func BlobKey(digest []byte) string { return hex.EncodeToString(digest) }

// ChunkKey returns the key of a blob's chunk, counted from 0.
func ChunkKey(digest []byte, chunk int) string { return fmt.Sprintf("%s/%04d", BlobKey(digest), chunk) }

// Chunks returns the number of chunks of data with this size.
func Chunks(size uint64) int { return int((size + ChunkSize - 1) / ChunkSize) }

// ReadBlob returns the data of a config, which has this digest. It returns ErrNoBlob if r
// lacks a part of it, and ErrBlobDamaged if the data has another digest.
func (t *Tables) ReadBlob(r store.Reader, digest []byte) ([]byte, error) {
	return ReadBlob(t.Blobs, r, digest)
}

// ReadSealed returns the sealed data of a secret, as ReadBlob does for configs.
func (t *Tables) ReadSealed(r store.Reader, digest []byte) ([]byte, error) {
	return ReadBlob(t.SealedBlobs, r, digest)
}

// ReadBlob does it with a table of blobs.
func ReadBlob(table *store.Table[*recordv1.Blob], r store.Reader, digest []byte) ([]byte, error) {
	e, ok := table.Get(r, BlobKey(digest))
	if !ok {
		return nil, ErrNoBlob
	}
	var data []byte
	for i := range Chunks(e.Value.Size) {
		chunk, ok := table.Get(r, ChunkKey(digest, i))
		if !ok {
			return nil, ErrNoBlob
		}
		data = append(data, chunk.Value.Data...)
	}
	if got := BlobDigest(data); !bytes.Equal(got, digest) {
		return nil, fmt.Errorf("%w: want %x, got %x from %d bytes", ErrBlobDamaged, digest, got, len(data))
	}
	return data, nil
}
