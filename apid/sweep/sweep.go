// Package sweep removes the records of apid that nothing needs any longer.
package sweep

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// sweepBatch bounds one transaction of the sweep.
const sweepBatch = 16

// unused is a task spec or a blob that nothing referred to, since when.
type unused struct {
	version uint64
	since   time.Time
}

// Options say how long records are kept, and what else a round of the sweep does.
type Options struct {
	// Interval is the time between two rounds.
	Interval time.Duration
	// SpecGrace is how long a task spec or a blob is kept that nothing refers to.
	SpecGrace time.Duration
	// TombstoneGrace is how long the record of a removed node is kept.
	TombstoneGrace time.Duration
	// Also is called in each round.
	Also func(ctx context.Context)
}

// Sweeper removes task specs and blobs that nothing refers to, the records of removed nodes,
// and names of removed services whose tasks are gone. Two sweepers at the same time
// do no harm.
type Sweeper struct {
	*backend.Backend
	opt Options
}

// New returns a sweeper.
func New(b *backend.Backend, opt Options) *Sweeper { return &Sweeper{b, opt} }

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	if err := s.WaitLoaded(ctx); err != nil {
		return nil
	}
	tick := time.NewTicker(s.opt.Interval)
	defer tick.Stop()
	waiting, blobs := map[string]unused{}, map[string]unused{}
	for {
		s.sweepSpecs(ctx, waiting, time.Now())
		s.sweepNodes(ctx, time.Now())
		s.sweepNames(ctx, time.Now())
		s.sweepBlobs(ctx, blobs, time.Now())
		s.opt.Also(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweepSpecs removes specs that have been unused for the grace time. That no
// task refers to a spec is seen in memory: no task is made of a spec that its
// service has left, so this can only become true. That no service refers to it
// is checked by the transaction that removes it.
func (s *Sweeper) sweepSpecs(ctx context.Context, waiting map[string]unused, now time.Time) {
	// The snapshot is older than the view that says what is used.
	specs := s.Snapshot()
	still := map[string]unused{}
	due := map[string]uint64{}
	s.View.Read(func(r *objects.Reader) {
		for e := range s.Tables.Specs.Scan(specs, "") {
			digest, err := hex.DecodeString(e.Key)
			if err != nil || r.SpecUsed(digest) || now.UnixMilli()-e.Value.CreatedAt < s.opt.SpecGrace.Milliseconds() {
				continue
			}
			u, known := waiting[e.Key]
			if !known || u.version != e.Version {
				u = unused{version: e.Version, since: now}
			}
			still[e.Key] = u
			if now.Sub(u.since) >= s.opt.SpecGrace && len(due) < sweepBatch {
				due[e.Key] = e.Version
			}
		}
	})
	clear(waiting)
	for k, u := range still {
		waiting[k] = u
	}
	if len(due) == 0 {
		return
	}
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	if err := s.removeSpecs(ctx, due); err != nil {
		s.Log.Warn("unused task specs stay until the next sweep", zap.Error(err))
		return
	}
	s.Log.Info("removed unused task specs", zap.Int("specs", len(due)))
}

// removeSpecs removes the specs that still have the given version and that no
// service refers to.
func (s *Sweeper) removeSpecs(ctx context.Context, due map[string]uint64) error {
	return s.Update(ctx, func(tx *store.Tx) error {
		for key, version := range due {
			if e, ok := s.Tables.Specs.Get(tx, key); ok && e.Version == version && !s.referredTo(tx, key) {
				s.Tables.Specs.Delete(tx, key)
			}
		}
		return nil
	})
}

func (s *Sweeper) referredTo(tx *store.Tx, key string) bool {
	digest, err := hex.DecodeString(key)
	if err != nil {
		return false
	}
	for e := range s.Tables.Services.Scan(tx, "") {
		if bytes.Equal(e.Value.TaskDigest, digest) || bytes.Equal(e.Value.PreviousTaskDigest, digest) ||
			bytes.Equal(e.Value.FormerTaskDigest, digest) {
			return true
		}
	}
	return false
}

// sweepNodes forgets nodes that were removed long ago and of which nothing is
// left.
func (s *Sweeper) sweepNodes(ctx context.Context, now time.Time) {
	var due []string
	for e := range s.Tables.Nodes.Scan(s.Snapshot(), "") {
		// Its certificate must not outlive the memory that it was removed.
		if e.Value.Removed && now.UnixMilli()-e.Value.UpdatedAt >= s.opt.TombstoneGrace.Milliseconds() && now.UnixMilli() > e.Value.CertificateEnds && len(due) < sweepBatch {
			due = append(due, e.Key)
		}
	}
	for _, id := range due {
		if err := s.forgetNode(ctx, id); err != nil {
			s.Log.Warn("removed node is remembered until the next sweep", zap.String("node", id), zap.Error(err))
			return
		}
	}
}

// sweepNames forgets the names of removed services that have no tasks any more.
func (s *Sweeper) sweepNames(ctx context.Context, now time.Time) {
	var due []string
	names := s.Snapshot()
	s.View.Read(func(r *objects.Reader) {
		for e := range s.Tables.Names.Scan(names, "") {
			id, removed := state.RemovedService(e.Key)
			if removed && now.UnixMilli()-e.Value.RemovedAt >= s.opt.SpecGrace.Milliseconds() && !r.HasTasks(id) && len(due) < sweepBatch {
				due = append(due, e.Key)
			}
		}
	})
	if len(due) == 0 {
		return
	}
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	err := s.Update(ctx, func(tx *store.Tx) error {
		for _, key := range due {
			s.Tables.Names.Delete(tx, key)
		}
		return nil
	})
	if err != nil {
		s.Log.Warn("failed to remove the names of removed services; retrying with the next sweep", zap.Error(err))
	}
}

func (s *Sweeper) forgetNode(ctx context.Context, id string) error {
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	return s.Update(ctx, func(tx *store.Tx) error {
		e, ok := s.Tables.Nodes.Get(tx, id)
		if !ok || !e.Value.Removed {
			return nil
		}
		if _, ok := s.Tables.NodeStates.Get(tx, id); ok {
			return nil
		}
		for range s.Tables.Assignments.Scan(tx, id+"/") {
			return nil
		}
		for range s.Tables.Statuses.Scan(tx, id+"/") {
			return nil
		}
		s.Tables.Nodes.Delete(tx, id)
		return nil
	})
}
