package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

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

// file keeps the key space on disk. Writes that come while one is under way
// are joined into the next, so that they share one fsync.
type file struct {
	db    *bbolt.DB
	queue chan batch
	done  chan struct{}
}

// batch is one transaction's writes, and who waits for them.
type batch struct {
	index   uint64
	written []write
	durable chan error
}

func openFile(path string) (*file, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, bbolt.ErrTimeout) {
		return nil, fmt.Errorf("open store %s: another process has it open: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	f := &file{db: db, queue: make(chan batch, 1024), done: make(chan struct{})}
	go f.run()
	return f, nil
}

// load reads everything and returns the newest index.
func (f *file) load(see func(kv.Pair)) (uint64, error) {
	var index uint64 = 1
	err := f.db.Update(func(tx *bbolt.Tx) error {
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
			index = max(index, p.Index)
			see(p)
			return nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read store %s: %w", f.db.Path(), err)
	}
	// Locks move the index in memory only. A step ahead keeps an index that was
	// handed out before the restart from being handed out again.
	return index + 1<<20, nil
}

// write queues writes and returns where their outcome will be told. Calls are
// made in order of index.
func (f *file) write(index uint64, written []write) <-chan error {
	durable := make(chan error, 1)
	f.queue <- batch{index, written, durable}
	return durable
}

// run writes until the queue is closed; close waits for it.
func (f *file) run() {
	defer close(f.done)
	for first := range f.queue {
		batches := []batch{first}
	join:
		for len(batches) < 1024 {
			select {
			case b, ok := <-f.queue:
				if !ok {
					break join
				}
				batches = append(batches, b)
			default:
				break join
			}
		}
		err := f.store(batches)
		for _, b := range batches {
			b.durable <- err
		}
	}
}

func (f *file) store(batches []batch) error {
	return f.db.Update(func(tx *bbolt.Tx) error {
		pairs := tx.Bucket(bucketPairs)
		for _, b := range batches {
			for _, w := range b.written {
				if w.removed {
					if err := pairs.Delete([]byte(w.pair.Key)); err != nil {
						return err
					}
					continue
				}
				v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(w.pair.Value)), w.pair.Index)
				if err := pairs.Put([]byte(w.pair.Key), append(v, w.pair.Value...)); err != nil {
					return err
				}
			}
		}
		return tx.Bucket(bucketMeta).Put(keyIndex, binary.BigEndian.AppendUint64(nil, batches[len(batches)-1].index))
	})
}

func (f *file) close() error {
	close(f.queue)
	<-f.done
	return f.db.Close()
}
