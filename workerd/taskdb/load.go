package taskdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var (
	metaBucket      = []byte("meta")
	specsBucket     = []byte("specs")
	tasksBucket     = []byte("tasks")
	statusesBucket  = []byte("statuses")
	handlesBucket   = []byte("handles")
	withdrawnBucket = []byte("withdrawn")
	executorsBucket = []byte("executors")
	placesBucket    = []byte("places")
	networksBucket  = []byte("networks")

	schemaKey = []byte("schema")
)

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errChecksum is the error of a value that is not what was written.
var errChecksum = errors.New("checksum does not match")

// seal puts a checksum before a value.
func seal(value []byte) []byte {
	sealed := make([]byte, 4, 4+len(value))
	binary.BigEndian.PutUint32(sealed, crc32.Checksum(value, castagnoli))
	return append(sealed, value...)
}

// unseal checks a value and returns it without its checksum.
func unseal(sealed []byte) ([]byte, error) {
	if len(sealed) < 4 {
		return nil, errChecksum
	}
	value := sealed[4:]
	if binary.BigEndian.Uint32(sealed) != crc32.Checksum(value, castagnoli) {
		return nil, errChecksum
	}
	return value, nil
}

// decode reads a sealed message.
func decode(sealed []byte, into proto.Message) error {
	value, err := unseal(sealed)
	if err != nil {
		return err
	}
	return proto.Unmarshal(value, into)
}

// load reads everything, and makes the buckets of a new file. Nothing is written to
// another one: a worker starts on a full disk, too.
func load(bolt *bbolt.DB) (*Contents, error) {
	contents := &Contents{Tasks: map[string]*Record{}, Specs: map[string]*musterv1.TaskSpec{}, Networks: map[string]*dispatcherv1.Assignments{}}
	if err := checkSize(bolt); err != nil {
		return nil, &damageError{err}
	}
	empty := false
	err := bolt.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			empty = true
			if first, _ := tx.Cursor().First(); first != nil {
				return &damageError{fmt.Errorf("a bucket %q and none called %q", first, metaBucket)}
			}
			return nil
		}
		schema, err := unseal(meta.Get(schemaKey))
		if err != nil {
			return &damageError{fmt.Errorf("schema: %w", err)}
		}
		if string(schema) != Schema {
			return fmt.Errorf("%w: its schema is %q, this version knows %q", ErrNewer, schema, Schema)
		}
		if err := contents.read(tx); err != nil {
			return &damageError{err}
		}
		return check(tx)
	})
	if err != nil || !empty {
		return contents, err
	}
	return contents, bolt.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{metaBucket, specsBucket, tasksBucket, statusesBucket, handlesBucket, withdrawnBucket, executorsBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("make bucket %s: %w", name, err)
			}
		}
		return tx.Bucket(metaBucket).Put(schemaKey, seal([]byte(Schema)))
	})
}

// checkSize finds a file that was cut off: a page that is missing from it must
// not be read.
func checkSize(bolt *bbolt.DB) error {
	info, err := os.Stat(bolt.Path())
	if err != nil {
		return fmt.Errorf("look at file: %w", err)
	}
	return bolt.View(func(tx *bbolt.Tx) error {
		if info.Size() < tx.Size() {
			return fmt.Errorf("file is cut off: %d bytes of %d", info.Size(), tx.Size())
		}
		return nil
	})
}

// check finds damage that reading does not: a list of free pages that would have
// a later write destroy what is in use. Only the first fault is told.
func check(tx *bbolt.Tx) error {
	var first error
	for err := range tx.Check() {
		if first == nil {
			first = &damageError{fmt.Errorf("check pages: %w", err)}
		}
	}
	return first
}

// read reads the records of all buckets.
func (c *Contents) read(tx *bbolt.Tx) error {
	for _, read := range []func(*bbolt.Tx) error{c.readAssignments, c.readProgress, c.readPlaces} {
		if err := read(tx); err != nil {
			return err
		}
	}
	return eachIfAny(tx, networksBucket, func(id string, sealed []byte) error {
		c.Networks[id] = new(dispatcherv1.Assignments)
		return decode(sealed, c.Networks[id])
	})
}

// readAssignments reads which tasks there are, and their specs.
func (c *Contents) readAssignments(tx *bbolt.Tx) error {
	err := each(tx, specsBucket, func(digest string, sealed []byte) error {
		spec := new(musterv1.TaskSpec)
		c.Specs[digest] = spec
		return decode(sealed, spec)
	})
	if err != nil {
		return err
	}
	return each(tx, tasksBucket, func(id string, sealed []byte) error {
		assigned := new(dispatcherv1.AssignedTask)
		if err := decode(sealed, assigned); err != nil {
			return err
		}
		if assigned.GetId() != id {
			return fmt.Errorf("it is of task %q", assigned.GetId())
		}
		if _, ok := c.Specs[string(assigned.GetSpecDigest())]; !ok {
			return fmt.Errorf("its spec %x is not there", assigned.GetSpecDigest())
		}
		c.Tasks[id] = &Record{Assigned: assigned}
		return nil
	})
}

// readProgress reads how far tasks are.
func (c *Contents) readProgress(tx *bbolt.Tx) error {
	err := c.eachOfTask(tx, statusesBucket, func(record *Record, sealed []byte) error {
		record.Status = new(dispatcherv1.ReportedStatus)
		return decode(sealed, record.Status)
	})
	if err != nil {
		return err
	}
	err = c.eachOfTask(tx, handlesBucket, func(record *Record, sealed []byte) error {
		handle, err := unseal(sealed)
		// What bbolt returns is valid during its transaction only.
		record.Handle = append([]byte(nil), handle...)
		return err
	})
	if err != nil {
		return err
	}
	return c.eachOfTask(tx, withdrawnBucket, func(record *Record, sealed []byte) error {
		record.Withdrawn = true
		_, err := unseal(sealed)
		return err
	})
}

// readPlaces reads which executors tasks have, and what they were given on the node.
func (c *Contents) readPlaces(tx *bbolt.Tx) error {
	err := eachIfAny(tx, executorsBucket, func(id string, sealed []byte) error {
		name, err := unseal(sealed)
		// An earlier version leaves this behind when it forgets a task.
		if record := c.Tasks[id]; record != nil {
			record.Executor = string(name)
		}
		return err
	})
	if err != nil {
		return err
	}
	return eachIfAny(tx, placesBucket, func(id string, sealed []byte) error {
		place, err := unseal(sealed)
		if record := c.Tasks[id]; record != nil {
			record.Place = append([]byte(nil), place...)
		}
		return err
	})
}

// eachIfAny is each for buckets that an earlier version does not have. The first write
// makes the bucket.
func eachIfAny(tx *bbolt.Tx, name []byte, do func(key string, sealed []byte) error) error {
	if tx.Bucket(name) == nil {
		return nil
	}
	return each(tx, name, do)
}

// each calls do with every key and value of a bucket.
func each(tx *bbolt.Tx, name []byte, do func(key string, sealed []byte) error) error {
	bucket := tx.Bucket(name)
	if bucket == nil {
		return fmt.Errorf("bucket %s is not there", name)
	}
	cursor := bucket.Cursor()
	for key, sealed := cursor.First(); key != nil; key, sealed = cursor.Next() {
		if err := do(string(key), sealed); err != nil {
			return fmt.Errorf("%s of %x: %w", name, key, err)
		}
	}
	return nil
}

// eachOfTask is each for buckets whose keys are tasks.
func (c *Contents) eachOfTask(tx *bbolt.Tx, name []byte, do func(record *Record, sealed []byte) error) error {
	return each(tx, name, func(id string, sealed []byte) error {
		record, ok := c.Tasks[id]
		if !ok {
			return errors.New("its task is not there")
		}
		return do(record, sealed)
	})
}
