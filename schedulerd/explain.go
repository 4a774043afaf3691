package schedulerd

import (
	"context"
	"errors"
	"iter"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

// explainedServices adds the services of which table placements says something: it
// may be what another scheduler left behind.
func (d *Daemon) explainedServices(r store.Reader, services map[string]struct{}) {
	for p := range d.tables.Placements.Scan(r, "") {
		// Fences of versions before v0.1.0 lie in the table too, under keys of one
		// segment.
		if service, _, ok := strings.Cut(p.Key, "/"); ok {
			services[service] = struct{}{}
		}
	}
}

// explanationsIn returns what table placements says of services.
func (d *Daemon) explanationsIn(r store.Reader) plan.Stored {
	return func(service string) iter.Seq2[string, *recordv1.Placement] {
		return func(yield func(string, *recordv1.Placement) bool) {
			for p := range d.tables.Placements.Scan(r, service+"/") {
				if strings.HasPrefix(p.Key, service+"/") && !yield(p.Key, p.Value) {
					return
				}
			}
		}
	}
}

// writeExplanations writes the explanations that are due, and returns after what time
// there is more to write, 0 if there is not.
func (d *Daemon) writeExplanations(ctx context.Context, explained *plan.Explanations) (time.Duration, error) {
	now := time.Now()
	due, next := explained.Due(now, d.explanationsIn(d.store.Snapshot()))
	var failed error
	for _, service := range due {
		err := d.store.Update(ctx, func(tx *store.Tx) error {
			if err := d.fences.Check(tx, store.ShardOf(service)); err != nil {
				return err
			}
			for key, p := range explained.Changes(service, now, d.explanationsIn(tx)) {
				if p == nil {
					d.tables.Placements.Delete(tx, key)
				} else {
					d.tables.Placements.Put(tx, key, p)
				}
			}
			return nil
		})
		switch {
		case errors.Is(err, fence.ErrFenced):
			explained.Drop(service)
		case err != nil:
			failed, next = err, retryAfter
		default:
			explained.Written(service, now)
		}
	}
	return next, failed
}
