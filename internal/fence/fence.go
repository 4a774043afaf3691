// Package fence lets one replica of a daemon at a time decide for a shard.
//
// A daemon whose decisions in a shard rest on records in many shards of the store's tables
// is not guarded by the heads of those. A lock cannot guard it either, because a replica
// that was paused does not know that it lost its lock. So each shard has a record that
// names its replica: the shard's fence. A replica that gains the shard writes the record,
// in a transaction that also checks that it has seen the newest of what its decisions rest
// on. Each decision is committed in a transaction that reads the record, and so fails if
// another replica has written it since.
//
// Each acquisition writes a holder of its own. If the outcome of a commit is unknown,
// acquiring the fence again settles it: either the commit shows by then, or it is never
// applied.
package fence

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// ErrFenced says that another replica has acquired the shard.
var ErrFenced = errors.New("another replica holds the shard")

// A replica that holds a shard and was fenced off waits between half of pause and
// longestPause before it acquires its fence again. If two replicas believe that they hold
// the shard, one of them learns within this time that it does not.
const (
	pause        = 500 * time.Millisecond
	longestPause = 4 * time.Second
)

// Record is what a shard's fence says.
type Record struct {
	Holder string
	Term   uint64
}

// Config says where a daemon's fences are.
type Config struct {
	// Holder is the replica's instance.
	Holder string
	// Tables are those that hold the fences.
	Tables []store.TableDef
	// Read makes a transaction check that the replica knows what is newest of all that its
	// decisions in a shard rest on.
	Read func(tx *store.Tx, shard int)
	// Get and Put read and write a shard's fence. Get returns the zero Record if there is
	// none.
	Get func(r store.Reader, shard int) Record
	Put func(tx *store.Tx, shard int, r Record)
	Log *zap.Logger
}

// Fences are the fences of a daemon's shards.
type Fences struct {
	cfg Config

	mu sync.Mutex
	// acquired holds what this replica last wrote into each fence, unless it is not known
	// to be there. ends holds what ends the wait for another replica to write there.
	acquired map[int]Record
	ends     map[int]context.CancelFunc
}

// New returns fences of which the replica has acquired none.
func New(cfg Config) *Fences {
	return &Fences{cfg: cfg, acquired: map[int]Record{}, ends: map[int]context.CancelFunc{}}
}

// Hold acquires a shard's fence, again after another replica has written it, until ctx
// ends. It calls held each time that the replica has acquired the fence, and lost when it
// must no longer decide. Lost returns when nothing that began before still writes.
func (f *Fences) Hold(ctx context.Context, s *store.Store, shard int, held, lost func()) error {
	for again := backoff.New(pause, longestPause); ; {
		if err := f.acquire(ctx, s, shard); err != nil {
			return err
		}
		held()
		f.wait(ctx, s, shard)
		lost()
		if ctx.Err() != nil {
			return nil
		}
		// A replica that was paused while it gained the shard, and has lost it since, may
		// write its fence as late as it likes.
		f.cfg.Log.Warn("acquiring the fence again", zap.Int("shard", shard))
		if again.Wait(ctx) != nil {
			return nil
		}
	}
}

// acquire makes this replica the shard's. Until it returns, no decision may rest on what
// was known before.
func (f *Fences) acquire(ctx context.Context, s *store.Store, shard int) error {
	next := Record{Holder: f.cfg.Holder + "/" + state.NewID()}
	err := s.Update(ctx, func(tx *store.Tx) error {
		f.cfg.Read(tx, shard)
		next.Term = f.cfg.Get(tx, shard).Term + 1
		f.cfg.Put(tx, shard, next)
		return nil
	})
	if err != nil {
		return fmt.Errorf("acquire fence of shard %d: %w", shard, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acquired[shard] = next
	return nil
}

// wait returns when another replica has written the shard's fence, when the fence is
// invalidated, or when ctx ends.
func (f *Fences) wait(ctx context.Context, s *store.Store, shard int) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	mine, known := f.acquired[shard]
	f.ends[shard] = end
	f.mu.Unlock()
	for seen := s.Snapshot(); known && f.cfg.Get(seen, shard) == mine; {
		next, err := s.Wait(ctx, seen, f.cfg.Tables...)
		if err != nil {
			return
		}
		seen = next
	}
}

// Invalidate makes the replica acquire the shard's fence again before its next decision.
func (f *Fences) Invalidate(shard int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.acquired, shard)
	if end := f.ends[shard]; end != nil {
		end()
	}
}

// Check makes a transaction depend on the shard still being this replica's. It returns
// ErrFenced if it is not.
func (f *Fences) Check(tx *store.Tx, shard int) error {
	f.mu.Lock()
	mine, known := f.acquired[shard]
	f.mu.Unlock()
	if now := f.cfg.Get(tx, shard); !known || now != mine {
		return ErrFenced
	}
	return nil
}
