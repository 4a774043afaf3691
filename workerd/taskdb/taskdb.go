// Package taskdb keeps a worker's tasks on its disk, in one bbolt file, so that
// a worker that starts again knows what it had begun:
//
//	meta       "schema" -> version of this layout
//	specs      <digest> -> muster.v1.TaskSpec
//	tasks      <task>   -> muster.dispatcher.v1.AssignedTask, as last assigned
//	statuses   <task>   -> muster.dispatcher.v1.ReportedStatus, the newest
//	handles    <task>   -> the executor's handle
//	executors  <task>   -> name of the executor that holds it
//	withdrawn  <task>   -> "": no longer assigned, still to be removed
//	places     <task>   -> its addresses on networks and what else belongs to them
//	networks   <network> -> muster.dispatcher.v1.Assignments: the network, its peers,
//	                        services and backends
//
// Each value begins with a checksum. The worker writes before it acts: a task
// before it touches it, a status before it reports it, PREPARING and STARTING
// before it calls the executor.
//
// A file that is damaged is set aside under another name and a new one begun:
// the executors' List and the managers' assignments bring back what was in it.
package taskdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Schema is the version of the layout that this package writes.
const Schema = "1"

// lockTimeout is how long to wait for another process to let go of the file:
// long enough for a predecessor that is just ending.
const lockTimeout = 2 * time.Second

// ErrInUse is the error of a file that another process has open.
var ErrInUse = errors.New("another worker uses it")

// ErrNewer is the error of a file that a newer version wrote.
var ErrNewer = errors.New("written by a newer version")

// Record is what is kept of one task.
type Record struct {
	Assigned *dispatcherv1.AssignedTask
	// Status is nil if nothing has been done yet.
	Status *dispatcherv1.ReportedStatus
	Handle []byte
	// Executor is the name of the executor that holds the task. It is empty if none was
	// called, or if that was not stored.
	Executor  string
	Withdrawn bool
	// Place is the task's place on its networks; nil if it has none.
	Place []byte
}

// Contents is what a file held when it was opened.
type Contents struct {
	// Tasks are the records, by task.
	Tasks map[string]*Record
	// Specs are the task specs, by digest.
	Specs map[string]*musterv1.TaskSpec
	// Networks are the networks with all that belongs to them, by id.
	Networks map[string]*dispatcherv1.Assignments
	// SetAside is where a damaged file was moved to. Tasks and Specs are empty
	// then.
	SetAside string
	// Damage is what was wrong with that file.
	Damage error
}

// DB is an open file.
type DB struct {
	bolt *bbolt.DB

	// writing holds one token: its holder commits.
	writing chan struct{}

	mu      sync.Mutex
	pending *batch
}

// Open opens the file at path, or makes one, and reads it. The directory must
// exist.
func Open(path string) (*DB, *Contents, error) {
	bolt, contents, err := open(path)
	var damage *damageError
	if errors.As(err, &damage) {
		aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000"))
		if err := os.Rename(path, aside); err != nil {
			return nil, nil, fmt.Errorf("set damaged %s aside: %w", path, err)
		}
		bolt, contents, err = open(path)
		if err != nil {
			// What a full disk leaves of a new file must not be set aside, too.
			return nil, nil, errors.Join(fmt.Errorf("start with a new file, keeping the damaged one as %s: %w", aside, err), remove(path))
		}
		contents.SetAside, contents.Damage = aside, damage
	}
	if err != nil {
		return nil, nil, err
	}
	db := &DB{bolt: bolt, writing: make(chan struct{}, 1)}
	return db, contents, nil
}

// remove removes a file if it is there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close closes the file. Nothing may be written any more.
func (db *DB) Close() error {
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("close %s: %w", filepath.Base(db.bolt.Path()), err)
	}
	return nil
}

// damageError says that a file is not what this package wrote.
type damageError struct{ cause error }

func (e *damageError) Error() string { return e.cause.Error() }
func (e *damageError) Unwrap() error { return e.cause }

// open opens the file and reads all of it.
func open(path string) (bolt *bbolt.DB, contents *Contents, err error) {
	// bbolt maps the file into memory and trusts it. Where a damaged page leads
	// it astray it panics, or reads beyond the mapping.
	defer func(old bool) { debug.SetPanicOnFault(old) }(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if bolt != nil {
				// No caller waits for a close of what is broken.
				err = errors.Join(&damageError{fmt.Errorf("read %s: %v", path, p)}, bolt.Close())
			} else {
				err = &damageError{fmt.Errorf("open %s: %v", path, p)}
			}
			bolt, contents = nil, nil
		}
	}()
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		// bbolt would take it for a new one.
		return nil, nil, &damageError{fmt.Errorf("open %s: it is empty", path)}
	}
	bolt, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		// What is wrong with the file itself has no error of its own kind; what
		// is wrong with the disk comes from the system.
		var system syscall.Errno
		err = fmt.Errorf("open %s: %w", path, err)
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return nil, nil, fmt.Errorf("open %s: %w", path, ErrInUse)
		case errors.As(err, &system):
			return nil, nil, err
		}
		return nil, nil, &damageError{err}
	}
	contents, err = load(bolt)
	if err != nil {
		err = errors.Join(fmt.Errorf("read %s: %w", path, err), bolt.Close())
		return nil, nil, err
	}
	return bolt, contents, nil
}
