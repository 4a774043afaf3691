package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/musterhq/muster/internal/kv"
)

// The file has two buckets: "pairs" holds index (8 bytes, big endian) and value
// under each key, "meta" the newest index under "index" and the format's version
// under "version".
var (
	bucketPairs = []byte("pairs")
	bucketMeta  = []byte("meta")
	keyIndex    = []byte("index")
	keyVersion  = []byte("version")
)

const fileVersion = 1

// file writes the key space to disk. Batches that are queued during a write are joined
// into the next one, so that they share one fsync.
type file struct {
	db *bbolt.DB

	mu      sync.Mutex
	pending []batch // in order of index
	durable uint64  // everything up to this index is on disk
	// err is the error of the first failed write. All later writes fail too, because the
	// file may be incomplete.
	err     error
	closing bool
	moved   chan struct{} // closed, and replaced, when durable or err changes
	wake    chan struct{} // holds a token if batches are queued
	done    chan struct{}
}

// batch holds the writes of one index.
type batch struct {
	index   uint64
	written []write
}

// openFile opens a file, passes every pair to a function, and returns the latest index.
func openFile(path string, see func(kv.Pair)) (*file, uint64, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, 0, fmt.Errorf("open store %s: another process has it open: %w", path, err)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open store %s: %w", path, err)
	}
	f := &file{db: db, moved: make(chan struct{}), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if f.durable, err = load(db, see); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("read store %s: %w", path, err), db.Close())
	}
	go f.run()
	return f, f.durable, nil
}

func load(db *bbolt.DB, see func(kv.Pair)) (index uint64, err error) {
	index = 1
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		pairs, err := tx.CreateBucketIfNotExists(bucketPairs)
		if err != nil {
			return err
		}
		switch v := meta.Get(keyVersion); {
		case v == nil:
			if err := meta.Put(keyVersion, []byte{fileVersion}); err != nil {
				return err
			}
		case len(v) != 1 || v[0] != fileVersion:
			return fmt.Errorf("format version is %v, this program knows %d", v, fileVersion)
		}
		if v := meta.Get(keyIndex); len(v) == 8 {
			index = binary.BigEndian.Uint64(v)
		}
		return pairs.ForEach(func(k, v []byte) error {
			if len(v) < 8 {
				return fmt.Errorf("value of key %q is cut short", k)
			}
			p := kv.Pair{Key: string(k), Index: binary.BigEndian.Uint64(v), Value: append([]byte(nil), v[8:]...)}
			if p.Index > index {
				return fmt.Errorf("key %q has index %d, beyond the newest, %d", k, p.Index, index)
			}
			see(p)
			return nil
		})
	})
	return index, err
}

// queue adds a batch. Calls must be in order of index.
func (f *file) queue(b batch) {
	f.mu.Lock()
	f.pending = append(f.pending, b)
	f.mu.Unlock()
	f.nudge()
}

func (f *file) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// await waits until everything up to an index is on disk.
func (f *file) await(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		durable, err, moved := f.durable, f.err, f.moved
		f.mu.Unlock()
		switch {
		case durable >= index:
			return nil
		case err != nil:
			return fmt.Errorf("write to disk: %w: %w", kv.ErrUnavailable, err)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("await the disk: %w: %w", kv.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// run writes what is queued until a write fails or the file is closed.
func (f *file) run() {
	defer close(f.done)
	for range f.wake {
		f.mu.Lock()
		batches, closing := f.pending, f.closing
		f.pending = nil
		f.mu.Unlock()
		if len(batches) > 0 {
			if werr := f.store(batches); werr != nil {
				f.settle(0, werr)
				return
			}
			f.settle(batches[len(batches)-1].index, nil)
		}
		if closing {
			return
		}
	}
}

// settle records up to which index the file is written, and wakes waiters.
func (f *file) settle(durable uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.durable = max(f.durable, durable)
	f.err = err
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *file) store(batches []batch) error {
	return f.db.Update(func(tx *bbolt.Tx) error {
		pairs := tx.Bucket(bucketPairs)
		for _, b := range batches {
			for _, w := range b.written {
				if err := put(pairs, w); err != nil {
					return fmt.Errorf("key %q: %w", w.pair.Key, err)
				}
			}
		}
		return tx.Bucket(bucketMeta).Put(keyIndex, binary.BigEndian.AppendUint64(nil, batches[len(batches)-1].index))
	})
}

// put writes to the bucket. Keys that are held as locks are skipped, because their
// session ends with the process.
func put(pairs *bbolt.Bucket, w write) error {
	if w.removed || w.pair.Session != "" {
		return pairs.Delete([]byte(w.pair.Key))
	}
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(w.pair.Value)), w.pair.Index)
	return pairs.Put([]byte(w.pair.Key), append(v, w.pair.Value...))
}

// close writes what is queued and closes the file.
func (f *file) close() error {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.nudge()
	<-f.done
	return f.db.Close()
}
