package workerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/taskdb"
)

const (
	// probeName is a file in the data directory that is only written to see
	// whether that is possible.
	probeName = "probe"
	// probeBytes is what must fit: room for the records of some tasks.
	probeBytes = 256 << 10
	// probeRetry is how often it is tried once it has failed.
	probeRetry = time.Second
)

// disk watches whether the data directory takes writes. While it does not,
// the node says that its executors are not healthy: new tasks would have to
// wait here, and are better placed elsewhere. Tasks that run are left alone.
type disk struct {
	dir      string
	interval time.Duration
	log      *zap.Logger
	// wake has room for one: look at once.
	wake chan struct{}
	// changed has room for one: problem says something else.
	changed chan struct{}

	mu      sync.Mutex
	problem error
}

func newDisk(dir string, interval time.Duration, log *zap.Logger) *disk {
	return &disk{dir: dir, interval: interval, log: log, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
}

// run looks from time to time until ctx ends.
func (d *disk) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-d.wake:
		}
		pause := d.interval
		if d.look() != nil {
			pause = probeRetry
		}
		timer.Reset(pause)
	}
}

// look tries to write.
func (d *disk) look() error {
	err := probe(filepath.Join(d.dir, probeName))
	d.mu.Lock()
	before := d.problem
	d.problem = err
	d.mu.Unlock()
	switch {
	case err != nil && before == nil:
		d.log.Error("data directory is not writable: running tasks keep running, new ones wait",
			zap.String("directory", d.dir), zap.Error(err))
	case err == nil && before != nil:
		d.log.Info("data directory is writable again", zap.String("directory", d.dir))
	default:
		return err
	}
	notify(d.changed)
	return err
}

func probe(path string) error {
	err := os.WriteFile(path, make([]byte, probeBytes), 0o600)
	if removed := os.Remove(path); !errors.Is(removed, os.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return err
}

// mark makes a description say what is wrong with the disk, if anything is.
func (d *disk) mark(e *musterv1.ExecutorDescription) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.problem == nil {
		return
	}
	e.Health = musterv1.ExecutorDescription_UNHEALTHY
	e.Message = fmt.Sprintf("the worker's data directory takes no writes: %v", d.problem)
}

// notify wakes the reader of a channel with room for one.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchedStore has the disk looked at when the store refuses a write.
type watchedStore struct {
	*taskdb.DB
	disk *disk
}

// Apply implements tasks.Store.
func (s watchedStore) Apply(specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) error {
	err := s.DB.Apply(specs, changes...)
	if err != nil {
		notify(s.disk.wake)
	}
	return err
}
