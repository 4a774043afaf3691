package allocatord

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Bounds of the pause after endpoints could not be written.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// allocate gives services their endpoints until ctx ends: first all of them,
// then those of which something has changed.
func (d *Daemon) allocate(ctx context.Context) error {
	var done *store.Snapshot // up to which everything is written
	retry := backoff.New(firstPause, mostPause)
	for {
		now := d.store.Snapshot()
		err := d.write(ctx, d.changed(done, now))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			d.log.Warn("failed to write endpoints", zap.Error(err))
			_ = retry.Wait(ctx)
			continue
		}
		done = now
		retry.Reset()
		if _, err := d.store.Wait(ctx, done, d.tables.Services, d.tables.Endpoints); err != nil {
			return nil // only the end of ctx ends it
		}
	}
}

// changed returns the services to look at.
func (d *Daemon) changed(from, to *store.Snapshot) map[string]struct{} {
	ids := map[string]struct{}{}
	for c := range d.tables.Services.Changes(from, to) {
		ids[c.Key()] = struct{}{}
	}
	for c := range d.tables.Endpoints.Changes(from, to) {
		ids[c.Key()] = struct{}{}
	}
	return ids
}

// write brings the endpoints of services to what they should be.
func (d *Daemon) write(ctx context.Context, ids map[string]struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	began := time.Now()
	fns := make([]func(*store.Tx) error, 0, len(ids))
	// changed are the services whose endpoints change.
	changed := make([]*recordv1.Service, len(ids))
	order := make([]string, 0, len(ids))
	for id := range ids {
		i := len(fns)
		order = append(order, id)
		fns = append(fns, func(tx *store.Tx) error {
			changed[i] = nil
			if s, ok := d.tables.Services.Get(tx, id); ok {
				if e := endpoint(s.Value); e != nil {
					if old, _ := d.tables.Endpoints.Get(tx, id); !proto.Equal(old.Value, e) {
						changed[i] = s.Value
					}
					d.tables.Endpoints.Put(tx, id, e)
					return nil
				}
			}
			d.tables.Endpoints.Delete(tx, id)
			return nil
		})
	}
	errs := d.store.UpdateAll(ctx, fns)
	now := time.Now()
	for i, err := range errs {
		if s := changed[i]; err == nil && s != nil {
			d.allocated.Observe(max(0, now.Sub(time.UnixMilli(s.UpdatedAt)).Seconds()))
			d.tracer.Begin(s.Trace, "allocate endpoint", began, tracing.Service(order[i])).End(nil)
		}
	}
	return errors.Join(errs...)
}
