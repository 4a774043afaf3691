package taskdb

import (
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Seal is seal, for tests that write what this package would not.
func Seal(value []byte) []byte { return seal(value) }

// Commits returns how many transactions have been written.
func (db *DB) Commits() (n int, err error) {
	err = db.bolt.View(func(tx *bbolt.Tx) error {
		n = tx.ID()
		return nil
	})
	return n, err
}

// Hold keeps commits from beginning until the returned function is called.
func (db *DB) Hold() (release func()) {
	db.writing <- struct{}{}
	return func() { <-db.writing }
}

// Waiting returns how many values wait for the next commit.
func (db *DB) Waiting() int {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.pending == nil {
		return 0
	}
	return len(db.pending.writes)
}

// Decode reads a value as each of the messages that values can be.
func Decode(sealed []byte) error {
	for _, into := range []proto.Message{new(musterv1.TaskSpec), new(dispatcherv1.AssignedTask), new(dispatcherv1.ReportedStatus)} {
		if err := decode(sealed, into); err != nil {
			return err
		}
	}
	return nil
}

// Samples returns sealed values to begin with.
func Samples() [][]byte {
	var samples [][]byte
	for _, message := range []proto.Message{
		&musterv1.TaskSpec{ForceUpdate: 3},
		&dispatcherv1.AssignedTask{Id: "a", SpecDigest: []byte{1}},
		&dispatcherv1.ReportedStatus{TaskId: "a", Status: &musterv1.TaskStatus{State: musterv1.TaskState_RUNNING}},
	} {
		value, err := proto.Marshal(message)
		if err == nil {
			samples = append(samples, seal(value))
		}
	}
	return samples
}
