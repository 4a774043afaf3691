// Package sweep removes the records of apid that nothing needs any longer.
package sweep

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// firstBatch is how many records one transaction of the sweep removes, unless it cannot
// hold so many.
const firstBatch = 64

// record is a record to remove, if it still has that version.
type record struct {
	key     string
	version uint64
}

// unused remembers since when nothing has referred to a version of a record.
type unused map[record]time.Time

// due returns the records that have been unused for the grace time, of those that are
// unused now. It forgets all others.
func (u unused) due(now time.Time, grace time.Duration, candidates []record) []record {
	still := unused{}
	var due []record
	for _, r := range candidates {
		since, known := u[r]
		if !known {
			since = now
		}
		still[r] = since
		if now.Sub(since) >= grace {
			due = append(due, r)
		}
	}
	clear(u)
	maps.Copy(u, still)
	return due
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
	specs, blobs := unused{}, blobsOf(s.Tables)
	for {
		s.sweepSpecs(ctx, specs, time.Now())
		s.sweepNodes(ctx, time.Now())
		s.sweepNames(ctx, time.Now())
		for _, of := range blobs {
			s.sweepBlobs(ctx, of, time.Now())
		}
		s.opt.Also(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweepSpecs removes specs that have been unused for the grace time. It checks in memory
// that no task refers to a spec. That cannot become wrong again, because no task is created
// from a spec that its service no longer has. The transaction that removes the spec checks
// that no service refers to it.
func (s *Sweeper) sweepSpecs(ctx context.Context, waiting unused, now time.Time) {
	// The snapshot is older than the view that says what is used.
	specs := s.Snapshot()
	var candidates []record
	s.View.Read(func(r *objects.Reader) {
		for e := range s.Tables.Specs.Scan(specs, "") {
			digest, err := hex.DecodeString(e.Key)
			if err == nil && !r.SpecUsed(digest) && now.UnixMilli()-e.Value.CreatedAt >= s.opt.SpecGrace.Milliseconds() {
				candidates = append(candidates, record{e.Key, e.Version})
			}
		}
	})
	s.remove(ctx, "task specs", waiting.due(now, s.opt.SpecGrace, candidates), func(tx *store.Tx, due []record) {
		for _, r := range due {
			if e, ok := s.Tables.Specs.Get(tx, r.key); ok && e.Version == r.version && !s.referredTo(tx, r.key) {
				s.Tables.Specs.Delete(tx, r.key)
			}
		}
	})
}

// remove removes records of a kind, as many at a time as a transaction holds.
func (s *Sweeper) remove(ctx context.Context, kind string, due []record, remove func(*store.Tx, []record)) {
	removed, batch := 0, firstBatch
	for removed < len(due) {
		part := due[removed:min(removed+batch, len(due))]
		err := s.write(ctx, func(tx *store.Tx) error {
			remove(tx, part)
			return nil
		})
		switch {
		case errors.Is(err, kv.ErrTooLarge) && len(part) > 1:
			batch = len(part) / 2
		case err != nil:
			s.Log.Warn("failed to remove unused records; retrying with the next sweep", zap.String("kind", kind), zap.Error(err))
			return
		default:
			removed += len(part)
		}
	}
	if removed > 0 {
		s.Log.Info("removed unused records", zap.String("kind", kind), zap.Int("records", removed))
	}
}

// write runs one transaction of the sweep.
func (s *Sweeper) write(ctx context.Context, fn func(*store.Tx) error) error {
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	return s.Update(ctx, fn)
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
		// While its certificate is valid, the record keeps it from being used.
		if e.Value.Removed && now.UnixMilli()-e.Value.UpdatedAt >= s.opt.TombstoneGrace.Milliseconds() && now.UnixMilli() > e.Value.CertificateEnds {
			due = append(due, e.Key)
		}
	}
	for _, id := range due {
		if err := s.forgetNode(ctx, id); err != nil {
			s.Log.Warn("failed to forget a removed node; retrying with the next sweep", zap.String("node", id), zap.Error(err))
			return
		}
	}
}

// sweepNames forgets the names of removed services that have no tasks any more.
func (s *Sweeper) sweepNames(ctx context.Context, now time.Time) {
	var due []record
	names := s.Snapshot()
	s.View.Read(func(r *objects.Reader) {
		for e := range s.Tables.Names.Scan(names, "") {
			id, removed := state.RemovedService(e.Key)
			if removed && now.UnixMilli()-e.Value.RemovedAt >= s.opt.SpecGrace.Milliseconds() && !r.HasTasks(id) {
				due = append(due, record{key: e.Key})
			}
		}
	})
	s.remove(ctx, "names of removed services", due, func(tx *store.Tx, due []record) {
		for _, r := range due {
			s.Tables.Names.Delete(tx, r.key)
		}
	})
}

func (s *Sweeper) forgetNode(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *store.Tx) error {
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
