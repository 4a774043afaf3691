// Package blobs stores data that is too long for one record of the store. The data is
// cut into chunks under the digest of its content, so that equal data is stored once.
//
// A transaction of the store cannot hold all chunks. So they are written first, each in
// a transaction of its own, and then the object that refers to them, in a transaction
// that calls Keep. Chunks of an object that was never written are removed by the sweep,
// which leaves alone what was used a short time ago.
package blobs

import (
	"bytes"
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// touch is the age from which the record of a blob that is used again is renewed. It is
// well below the time for which unused blobs are kept.
const touch = 20 * time.Second

// Blobs writes and reads data of one kind of objects.
type Blobs struct {
	*backend.Backend
	table *store.Table[*recordv1.Blob]
	kind  string
	most  uint64
}

// New returns the blobs in a table, which may have so many bytes together; 0 means no limit.
// Kind names the objects whose data they are, such as "config".
func New(b *backend.Backend, table *store.Table[*recordv1.Blob], kind string, most uint64) *Blobs {
	return &Blobs{Backend: b, table: table, kind: kind, most: most}
}

// Write sees to it that data is in the store, and returns its digest.
func (b *Blobs) Write(ctx context.Context, data []byte) ([]byte, error) {
	digest, size := state.BlobDigest(data), uint64(len(data))
	err := b.Update(ctx, func(tx *store.Tx) error {
		if _, there := b.table.Get(tx, state.BlobKey(digest)); !there {
			if err := b.fits(tx, size); err != nil {
				return err
			}
		}
		b.use(tx, digest, size, time.Now())
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range state.Chunks(size) {
		key := state.ChunkKey(digest, i)
		chunk := &recordv1.Blob{Data: data[i*state.ChunkSize : min(len(data), (i+1)*state.ChunkSize)]}
		err := b.Update(ctx, func(tx *store.Tx) error {
			if e, there := b.table.Get(tx, key); there && bytes.Equal(e.Value.Data, chunk.Data) {
				return backend.ErrNoChange
			}
			b.table.Put(tx, key, chunk)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return digest, nil
}

// fits refuses data that is too much together with that of all other blobs, those included that
// the sweep has not removed yet.
func (b *Blobs) fits(tx *store.Tx, size uint64) error {
	if b.most == 0 {
		return nil
	}
	used := uint64(0)
	for e := range b.table.Scan(tx, "") {
		used += e.Value.Size // chunks have none
	}
	if used+size <= b.most {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted,
		"all %[1]ss together may have %[2]d bytes; they have %[3]d, and this one has %[4]d: remove %[1]ss that no service uses and try again once their data is gone, or raise --max-config-bytes of apid",
		b.kind, b.most, used, size)
}

// Keep sees to it, in the transaction that writes an object, that the object's data
// stays: the transaction of the sweep and this one cannot both succeed. It returns
// state.ErrNoBlob if the data is not there.
func (b *Blobs) Keep(tx *store.Tx, digest []byte, size uint64) error {
	for i := range state.Chunks(size) {
		if _, there := b.table.Get(tx, state.ChunkKey(digest, i)); !there {
			return state.ErrNoBlob
		}
	}
	if _, there := b.table.Get(tx, state.BlobKey(digest)); !there {
		return state.ErrNoBlob
	}
	b.use(tx, digest, size, time.Now())
	return nil
}

// use notes that a blob is used now.
func (b *Blobs) use(tx *store.Tx, digest []byte, size uint64, now time.Time) {
	key := state.BlobKey(digest)
	if e, there := b.table.Get(tx, key); there && e.Value.Size == size && now.UnixMilli()-e.Value.UsedAt < touch.Milliseconds() {
		return
	}
	b.table.Put(tx, key, &recordv1.Blob{Size: size, UsedAt: now.UnixMilli()})
}

// Read returns the data of a digest. The object that refers to it may have reached this
// replica sooner than the data, which is waited for then.
func (b *Blobs) Read(ctx context.Context, digest []byte) ([]byte, error) {
	data, err := state.ReadBlob(b.table, b.Snapshot(), digest)
	if !errors.Is(err, state.ErrNoBlob) {
		return data, err
	}
	if err := b.Sync(ctx, b.table); err != nil {
		return nil, err
	}
	return state.ReadBlob(b.table, b.Snapshot(), digest)
}
