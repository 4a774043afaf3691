package liveness

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Locks are the locks of shards.
type Locks interface {
	// Holds asks the store whether this replica holds the lock of a shard.
	Holds(ctx context.Context, shard int) (bool, error)
}

// Ownership knows whether a shard is certain to belong to this replica. After a
// pause of the process it is not: the workers may have a session with another
// dispatcher, and the end of their connections here says nothing about them.
type Ownership struct {
	shard  int
	locks  Locks
	pauses *PauseDetector
	log    *zap.Logger
	// doubted has a buffer of one. It is filled when the ownership is asked for and
	// not certain.
	doubted chan struct{}

	mu sync.Mutex
	// since is the resumption of the process after which the ownership was confirmed.
	since time.Time
}

// NewOwnership returns the ownership of a shard whose lock was just acquired.
func NewOwnership(shard int, locks Locks, pauses *PauseDetector, log *zap.Logger) *Ownership {
	return &Ownership{
		shard: shard, locks: locks, pauses: pauses, log: log,
		doubted: make(chan struct{}, 1), since: pauses.runningSince(time.Now()),
	}
}

// Confirmed reports whether the shard is certain to belong to this replica. If
// not, the tracker asks the store, and checks all nodes after that.
func (o *Ownership) Confirmed() bool {
	if o.confirmedAfter(o.pauses.runningSince(time.Now())) {
		return true
	}
	select {
	case o.doubted <- struct{}{}:
	default:
	}
	return false
}

// confirm asks the store if the ownership is not certain. Asked says that it did,
// and that the shard belongs to this replica.
func (o *Ownership) confirm(ctx context.Context) (owned, asked bool) {
	now := time.Now()
	resumed := o.pauses.runningSince(now)
	switch {
	case o.confirmedAfter(resumed):
		return true, false
	case o.pauses.paused(now):
		// The next tick notes since when the process runs again.
		return false, false
	}
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	held, err := o.locks.Holds(bounded, o.shard)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("failed to confirm the ownership of a shard; nodes are not checked", zap.Int("shard", o.shard), zap.Error(err))
	}
	if err != nil || !held {
		return false, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since = resumed
	return true, true
}

func (o *Ownership) confirmedAfter(resumed time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !resumed.After(o.since)
}
