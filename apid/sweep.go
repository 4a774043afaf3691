package apid

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// sweepBatch bounds one transaction of the sweep.
const sweepBatch = 16

// unused is a task spec that nothing referred to, since when.
type unused struct {
	version uint64
	since   time.Time
}

// sweep removes, until ctx ends, what apid has written and nothing needs any
// more: task specs that nothing refers to, the memory of removed nodes, names of
// removed services whose tasks are gone, and a root that a rotation has replaced. One
// replica does it at a time; that two do it is harmless.
func (d *Daemon) sweep(ctx context.Context) error {
	if err := d.store.Ready(ctx); err != nil {
		return nil
	}
	tick := time.NewTicker(d.cfg.Sweep)
	defer tick.Stop()
	waiting := map[string]unused{}
	for {
		d.sweepSpecs(ctx, waiting, time.Now())
		d.sweepNodes(ctx, time.Now())
		d.sweepNames(ctx, time.Now())
		d.endRotation(ctx)
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
func (d *Daemon) sweepSpecs(ctx context.Context, waiting map[string]unused, now time.Time) {
	// The snapshot is older than the view that says what is used.
	specs := d.store.Snapshot()
	still := map[string]unused{}
	due := map[string]uint64{}
	d.view.Read(func(r *objects.Reader) {
		for e := range d.tables.Specs.Scan(specs, "") {
			digest, err := hex.DecodeString(e.Key)
			if err != nil || r.SpecUsed(digest) || now.UnixMilli()-e.Value.CreatedAt < d.cfg.SpecGrace.Milliseconds() {
				continue
			}
			u, known := waiting[e.Key]
			if !known || u.version != e.Version {
				u = unused{version: e.Version, since: now}
			}
			still[e.Key] = u
			if now.Sub(u.since) >= d.cfg.SpecGrace && len(due) < sweepBatch {
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
	ctx, cancel := d.writing(ctx)
	defer cancel()
	if err := d.removeSpecs(ctx, due); err != nil {
		d.log.Warn("unused task specs stay until the next sweep", zap.Error(err))
		return
	}
	d.log.Info("removed unused task specs", zap.Int("specs", len(due)))
}

// removeSpecs removes the specs that still have the given version and that no
// service refers to.
func (d *Daemon) removeSpecs(ctx context.Context, due map[string]uint64) error {
	return d.update(ctx, func(tx *store.Tx) error {
		for key, version := range due {
			if e, ok := d.tables.Specs.Get(tx, key); ok && e.Version == version && !d.referredTo(tx, key) {
				d.tables.Specs.Delete(tx, key)
			}
		}
		return nil
	})
}

func (d *Daemon) referredTo(tx *store.Tx, key string) bool {
	digest, err := hex.DecodeString(key)
	if err != nil {
		return false
	}
	for e := range d.tables.Services.Scan(tx, "") {
		if bytes.Equal(e.Value.TaskDigest, digest) || bytes.Equal(e.Value.PreviousTaskDigest, digest) ||
			bytes.Equal(e.Value.FormerTaskDigest, digest) {
			return true
		}
	}
	return false
}

// sweepNodes forgets nodes that were removed long ago and of which nothing is
// left.
func (d *Daemon) sweepNodes(ctx context.Context, now time.Time) {
	var due []string
	for e := range d.tables.Nodes.Scan(d.store.Snapshot(), "") {
		// Its certificate must not outlive the memory that it was removed.
		if e.Value.Removed && now.UnixMilli()-e.Value.UpdatedAt >= d.cfg.TombstoneGrace.Milliseconds() && now.UnixMilli() > e.Value.CertificateEnds && len(due) < sweepBatch {
			due = append(due, e.Key)
		}
	}
	for _, id := range due {
		if err := d.forgetNode(ctx, id); err != nil {
			d.log.Warn("removed node is remembered until the next sweep", zap.String("node", id), zap.Error(err))
			return
		}
	}
}

// sweepNames forgets the names of removed services that have no tasks any more.
func (d *Daemon) sweepNames(ctx context.Context, now time.Time) {
	var due []string
	names := d.store.Snapshot()
	d.view.Read(func(r *objects.Reader) {
		for e := range d.tables.Names.Scan(names, "") {
			id, removed := state.RemovedService(e.Key)
			if removed && now.UnixMilli()-e.Value.RemovedAt >= d.cfg.SpecGrace.Milliseconds() && !r.HasTasks(id) && len(due) < sweepBatch {
				due = append(due, e.Key)
			}
		}
	})
	if len(due) == 0 {
		return
	}
	ctx, cancel := d.writing(ctx)
	defer cancel()
	err := d.update(ctx, func(tx *store.Tx) error {
		for _, key := range due {
			d.tables.Names.Delete(tx, key)
		}
		return nil
	})
	if err != nil {
		d.log.Warn("failed to remove the names of removed services; retrying with the next sweep", zap.Error(err))
	}
}

func (d *Daemon) forgetNode(ctx context.Context, id string) error {
	ctx, cancel := d.writing(ctx)
	defer cancel()
	return d.update(ctx, func(tx *store.Tx) error {
		e, ok := d.tables.Nodes.Get(tx, id)
		if !ok || !e.Value.Removed {
			return nil
		}
		if _, ok := d.tables.NodeStates.Get(tx, id); ok {
			return nil
		}
		for range d.tables.Assignments.Scan(tx, id+"/") {
			return nil
		}
		for range d.tables.Statuses.Scan(tx, id+"/") {
			return nil
		}
		d.tables.Nodes.Delete(tx, id)
		return nil
	})
}
