package taskdb

import (
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Change is what to write of one task. Nil fields leave what is there.
type Change struct {
	ID       string
	Assigned *dispatcherv1.AssignedTask
	Status   *dispatcherv1.ReportedStatus
	// Handle is written if it is not nil.
	Handle []byte
	// Executor is written if it is not empty.
	Executor  string
	Withdrawn bool
	// Place is written if it is not nil, and removed if NoPlace is set.
	Place   []byte
	NoPlace bool
	// Forget removes everything of the task, and nothing else counts then.
	Forget bool
}

// batch is what is committed together.
type batch struct {
	writes []write
	done   chan struct{}
	err    error
}

// write is one value to be set, or removed if it is nil.
type write struct {
	bucket, key, value []byte
	// ofTask says that the value belongs to a task that must be there.
	ofTask bool
}

// Apply writes specs and changes, and returns when they are on the disk: all of
// them, or with an error none. What is written by several at once goes to the
// disk together, so that many tasks cost few syncs.
func (db *DB) Apply(specs map[string]*musterv1.TaskSpec, changes ...Change) error {
	writes, err := encode(specs, changes)
	if err != nil || len(writes) == 0 {
		return err
	}
	return db.write(writes)
}

// ApplyNetworks writes networks by id, and removes those that are nil. It returns when
// all or, with an error, none of that is on the disk.
func (db *DB) ApplyNetworks(networks map[string]*dispatcherv1.Assignments) error {
	writes := make([]write, 0, len(networks))
	for id, objects := range networks {
		w := write{bucket: networksBucket, key: []byte(id)}
		if objects != nil {
			value, err := proto.Marshal(objects)
			if err != nil {
				return fmt.Errorf("encode network %s: %w", id, err)
			}
			w.value = seal(value)
		}
		writes = append(writes, w)
	}
	return db.write(writes)
}

// write writes with what others write at the same time.
func (db *DB) write(writes []write) error {
	db.mu.Lock()
	mine := db.pending
	if mine == nil {
		mine = &batch{done: make(chan struct{})}
		db.pending = mine
	}
	mine.writes = append(mine.writes, writes...)
	db.mu.Unlock()

	// The goroutine that gets the token commits for all that came during the commit
	// before.
	select {
	case <-mine.done:
		return mine.err
	case db.writing <- struct{}{}:
	}
	defer func() { <-db.writing }()
	db.mu.Lock()
	taken := db.pending == mine
	if taken {
		db.pending = nil
	}
	db.mu.Unlock()
	if taken {
		mine.err = db.commit(mine.writes)
		close(mine.done)
	}
	<-mine.done
	return mine.err
}

// DropSpecs removes the specs that keep does not name.
func (db *DB) DropSpecs(keep map[string]bool) error {
	return db.bolt.Update(func(tx *bbolt.Tx) error {
		var drop [][]byte
		cursor := tx.Bucket(specsBucket).Cursor()
		for key, _ := cursor.First(); key != nil; key, _ = cursor.Next() {
			if !keep[string(key)] {
				drop = append(drop, key)
			}
		}
		for _, key := range drop {
			if err := tx.Bucket(specsBucket).Delete(key); err != nil {
				return fmt.Errorf("drop spec %x: %w", key, err)
			}
		}
		return nil
	})
}

// encode makes writes of changes, outside of the commit that others wait for.
func encode(specs map[string]*musterv1.TaskSpec, changes []Change) ([]write, error) {
	writes := make([]write, 0, len(specs)+2*len(changes))
	put := func(bucket, key []byte, message proto.Message) error {
		value, err := proto.Marshal(message)
		if err != nil {
			return fmt.Errorf("encode %s of %x: %w", bucket, key, err)
		}
		writes = append(writes, write{bucket, key, seal(value), slices.Equal(bucket, statusesBucket)})
		return nil
	}
	for digest, spec := range specs {
		if err := put(specsBucket, []byte(digest), spec); err != nil {
			return nil, err
		}
	}
	for _, change := range changes {
		id := []byte(change.ID)
		if change.Forget {
			for _, bucket := range [][]byte{tasksBucket, statusesBucket, handlesBucket, withdrawnBucket, executorsBucket, placesBucket} {
				writes = append(writes, write{bucket, id, nil, false})
			}
			continue
		}
		if change.Assigned != nil {
			if err := put(tasksBucket, id, change.Assigned); err != nil {
				return nil, err
			}
		}
		if change.Status != nil {
			if err := put(statusesBucket, id, change.Status); err != nil {
				return nil, err
			}
		}
		if change.Handle != nil {
			writes = append(writes, write{handlesBucket, id, seal(change.Handle), true})
		}
		if change.Executor != "" {
			writes = append(writes, write{executorsBucket, id, seal([]byte(change.Executor)), true})
		}
		if change.Withdrawn {
			writes = append(writes, write{withdrawnBucket, id, seal(nil), true})
		}
		if change.Place != nil {
			writes = append(writes, write{placesBucket, id, seal(change.Place), true})
		} else if change.NoPlace {
			writes = append(writes, write{placesBucket, id, nil, false})
		}
	}
	return writes, nil
}

// commit writes in one transaction.
func (db *DB) commit(writes []write) error {
	err := db.bolt.Update(func(tx *bbolt.Tx) error {
		for _, w := range writes {
			if w.ofTask && tx.Bucket(tasksBucket).Get(w.key) == nil {
				// It has been forgotten meanwhile, and nothing may be left of it.
				continue
			}
			if err := w.apply(tx); err != nil {
				return fmt.Errorf("write %s of %q: %w", w.bucket, w.key, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit to task database: %w", err)
	}
	return nil
}

// apply writes the value. A file of an earlier version may lack the bucket.
func (w *write) apply(tx *bbolt.Tx) error {
	if w.value == nil {
		if bucket := tx.Bucket(w.bucket); bucket != nil {
			return bucket.Delete(w.key)
		}
		return nil
	}
	bucket, err := tx.CreateBucketIfNotExists(w.bucket)
	if err != nil {
		return err
	}
	return bucket.Put(w.key, w.value)
}
